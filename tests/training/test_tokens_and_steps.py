"""Hosts with tokens or positions of their own, several batches a step, or a test of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anchoropt_plugin import UserError, attach
from anchoropt_plugin.encoders.accelerate import accelerate
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.method.objective import average, distillation
from anchoropt_plugin.method.position import AnchorPositionModule
from anchoropt_plugin.prompts.attachment import attachment_of
from trainers.coop import PromptLearner
from trainers.prompted_clip import PromptedCLIP, TextEncoder, embed_prompts

from .test_host_parts import odd_host
from .test_two_stages import build, root

__all__ = ["root"]

OFF = ["TRAINER.ANCHOROPT.FAST_TEXT", "False"]


def trainer_of(root, tmp_path, name, model=None, keys=(), classes="base", **members):
    """CoOp with AnchorOPT, its model of another class, its anchors found."""
    if model is not None:
        members["build_prompted_clip"] = lambda self, learner, clip: model(learner, clip)
    name = odd_host(name, **members)
    trainer = build(root, tmp_path, trainer=name, keys=keys, classes=classes)
    trainer.anchoropt_stage_one()
    return trainer


def plain_features(model, tokens):
    """Features of the learner's prompts by CLIP's own tower, read at the EOT of ``tokens``."""
    clip = load_clip("tiny")
    x = clip.transformer((model.prompt_learner() + clip.positional_embedding).permute(1, 0, 2))
    x = clip.ln_final(x.permute(1, 0, 2))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection


class CopiedBefore(PromptedCLIP):
    """Its tokens are a copy from before the learner is registered."""

    def __init__(self, learner, clip):
        copied = learner.tokenized_prompts.clone()
        super().__init__(learner, clip)
        self.tokenized_prompts = copied


@pytest.mark.parametrize("keys", [[], OFF], ids=["fast", "own"])
def test_tokens_copied_before_the_anchors_are_moved(root, tmp_path, keys):
    trainer = trainer_of(root, tmp_path, f"CopiedBefore{len(keys)}", CopiedBefore, keys)
    model = trainer.model.eval()
    true = model.prompt_learner.tokenized_prompts
    assert not torch.equal(model.tokenized_prompts, true)
    with torch.no_grad():
        got = model.text_encoder(model.prompt_learner(), model.tokenized_prompts)
        torch.testing.assert_close(got, plain_features(model, true), rtol=1e-4, atol=1e-5)


def test_released_pooling_leaves_them(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.POOLING", "unshifted"]
    model = trainer_of(root, tmp_path, "CopiedReleased", CopiedBefore, keys).model.eval()
    tokens = model.tokenized_prompts
    assert torch.equal(tokens, model.prompt_learner.tokenized_prompts)
    with torch.no_grad():
        got = model.text_encoder(model.prompt_learner(), tokens)
        torch.testing.assert_close(got, plain_features(model, tokens), rtol=1e-4, atol=1e-5)


class FurtherClasses(PromptLearner):
    """Gives prompts of other classes too, at another call or as a second output."""

    def __init__(self, cfg, class_names, clip, both=False):
        super().__init__(cfg, class_names, clip)
        words = " ".join(["X"] * cfg.TRAINER.COOP.N_CTX)
        self.other_tokens, embedded = embed_prompts(clip, ["bee", "a red cup"], words)
        self.register_buffer("other_prefix", embedded[:, :1], persistent=False)
        self.register_buffer("other_suffix", embedded[:, 1 + len(self.ctx) :], persistent=False)
        self.both = both

    def forward(self, others=False):
        parts = self.other_prefix, self.ctx.expand(2, -1, -1), self.other_suffix
        further = torch.cat(parts, 1)
        if others:
            return further
        prompts = super().forward()
        return (prompts, further, further.detach(), prompts[:1]) if self.both else prompts


def test_prompts_of_other_classes_are_read_at_their_eot(root, tmp_path):
    trainer = trainer_of(
        root,
        tmp_path,
        "FurtherClasses",
        build_learner=lambda self, names, clip: FurtherClasses(self.cfg, names, clip),
    )
    model = trainer.model.eval()
    learner = model.prompt_learner
    kept = learner.other_tokens.clone()
    with torch.no_grad():
        got = model.text_encoder(learner(others=True), learner.other_tokens)
        x = learner(others=True) + model.text_encoder.positional_embedding
        x = load_clip("tiny").transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = model.text_encoder.ln_final(x)[[0, 1], kept.argmax(-1) + 1]
        want = x @ model.text_encoder.text_projection
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(kept, learner.other_tokens)  # a host's own are not written over


def test_all_prompts_of_one_context_are_arranged_alike(root, tmp_path):
    trainer = trainer_of(
        root,
        tmp_path,
        "BothAtOnce",
        build_learner=lambda self, names, clip: FurtherClasses(self.cfg, names, clip, both=True),
        keys=["TRAINER.ANCHOROPT.POSITION_INIT", "0.0"],
    )
    learner = trainer.model.prompt_learner
    learner.train()
    prompts, further, fixed, first = learner()
    n_slots = learner.anchoropt.n_ctx + 1
    context = learner.anchoropt.matrix() @ torch.cat([learner.ctx, learner.anchoropt.anchors])
    for arranged in (prompts, further, first):
        assert torch.equal(arranged[0, 1 : 1 + n_slots], context)
    assert torch.equal(further[:, 1 + n_slots :], learner.other_suffix[:, :-1])
    assert torch.equal(fixed[0, 1:n_slots], learner.ctx)  # without a gradient: a constant


class OwnPositions(TextEncoder):
    """Reads features where EOT was when it was built."""

    def __init__(self, clip, tokens):
        super().__init__(clip)
        self.eot = tokens.argmax(-1)

    def forward(self, prompts, tokenized_prompts):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), self.eot] @ self.text_projection


class ByPosition(OwnPositions):
    """Is told the positions, not the tokens."""

    def forward(self, prompts, eot):
        self.eot = eot
        return super().forward(prompts, eot)


class WithOwnPositions(PromptedCLIP):
    kind = OwnPositions
    late = False

    def __init__(self, learner, clip):
        before = learner.tokenized_prompts.clone()
        super().__init__(learner, clip)
        tokens = learner.tokenized_prompts if self.late else before
        self.text_encoder = self.kind(clip, tokens)
        if self.kind is ByPosition:
            self.tokenized_prompts = tokens.argmax(-1)


class WithPositionsGiven(WithOwnPositions):
    kind = ByPosition


class WithLatePositions(WithPositionsGiven):
    late = True


@pytest.mark.parametrize("keys", [[], OFF], ids=["fast", "own"])
@pytest.mark.parametrize("kind", [WithOwnPositions, WithPositionsGiven])
def test_positions_from_before_are_told(root, tmp_path, kind, keys):
    trainer = trainer_of(root, tmp_path, f"{kind.__name__}{len(keys)}", kind, keys)
    with pytest.raises(UserError, match="reads features elsewhere than at EOT"):
        trainer.forward_backward(next(iter(trainer.train_loader_x)))


def test_positions_of_the_moved_eot_are_right(root, tmp_path):
    model = trainer_of(root, tmp_path, "WithLatePositions", WithLatePositions).model.eval()
    with torch.no_grad():
        got = model.text_encoder(model.prompt_learner(), model.tokenized_prompts)
        want = plain_features(model, model.prompt_learner.tokenized_prompts)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class OfEachClass(TextEncoder):
    """Holds a number for each class, so it cannot be called with some of them."""

    def __init__(self, clip, n_classes):
        super().__init__(clip)
        self.shift = nn.Parameter(torch.zeros(n_classes, 1))

    def forward(self, prompts, tokenized_prompts):
        return super().forward(prompts, tokenized_prompts) + self.shift


@pytest.mark.parametrize("n_classes", [5, 70])
def test_an_encoder_with_parameters_of_each_class_keeps_its_own_forward(clip, n_classes, caplog):
    names = [f"{'a ' * (i % 3)}cat {i}" for i in range(n_classes)]
    tokens, embedded = embed_prompts(clip, names, "X X")
    encoder = OfEachClass(clip, n_classes)
    with torch.no_grad():
        want = encoder(embedded, tokens)
        accelerate(encoder)
        torch.testing.assert_close(encoder(embedded, tokens), want)
    assert "its own forward stays" in caplog.text


def in_parts(self, batch):
    """Both halves of a batch, their gradients summed up."""
    image, label = self.parse_batch_train(batch)
    losses = []
    for part in torch.arange(len(image)).chunk(2):
        output = self.model(image[part])
        loss = F.cross_entropy(output, label[part])
        losses.append((part, output.detach(), loss.item()))
        loss.backward()
    return {"parts": losses}


def test_every_batch_of_a_step_gets_the_objective(root, tmp_path, caplog):
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "1000"]
    trainer = trainer_of(root, tmp_path, "InParts", keys=keys, forward_backward=in_parts)
    batch = next(iter(trainer.train_loader_x))
    batch = {"img": torch.cat([batch["img"]] * 4)[:4] + torch.randn(4, 1, 1, 1)} | {
        "label": torch.tensor([0, 1, 2, 3])
    }
    run = trainer.anchoropt
    for part, output, loss in trainer.forward_backward(batch)["parts"]:
        run.features.clear()
        with torch.no_grad():
            trainer.model.image_encoder(batch["img"][part])
        want = F.cross_entropy(output, batch["label"][part])
        want = want + 1000 * distillation(output, run.logits(), run.settings.kd_temperature)
        assert loss == pytest.approx(want.item(), rel=1e-4)
    assert "several cross-entropies" not in caplog.text


def own_loop(self, split=None):
    """A test that goes without ``model_inference``."""
    self.set_model_mode("eval")
    for batch in self.test_loader:
        image, label = self.parse_batch_test(batch)
        with torch.no_grad():
            self.evaluator.process(self.model(image).softmax(-1), label)
    return 0.5


def two_outputs(self, image):
    return self.model(image), "local"


@pytest.mark.parametrize("how", ["loop", "tuple"])
def test_other_ways_to_test_are_averaged(root, tmp_path, caplog, how):
    members = {"test": own_loop} if how == "loop" else {"model_inference": two_outputs}
    trainer = trainer_of(root, tmp_path, f"Tests{how}", classes="new", **members)
    batch = next(iter(trainer.test_loader))
    image = trainer.parse_batch_test(batch)[0]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        trainer.anchoropt.features.clear()
        own = trainer.model(image)
        want = average(own, trainer.anchoropt.logits()).log_softmax(-1)
        if how == "tuple":
            got, other = trainer.model_inference(image)
            assert other == "local"
        else:
            seen = []
            trainer.evaluator.process = lambda output, labels: seen.append(output)
            assert trainer.test() == 0.5
            got = seen[0]
    torch.testing.assert_close(got.log_softmax(-1), want, rtol=1e-4, atol=1e-4)
    assert "were not averaged" not in caplog.text


def test_distillation_wants_logits_of_one_shape():
    with pytest.raises(ValueError, match=r"prompt logits \(2, 3\) and anchor logits \(1, 3\)"):
        distillation(torch.zeros(2, 3), torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match=r"the reduction is 'batchmean': expected 'mean'"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 3), 1.0, "batchmean")


def test_position_logits_that_are_not_finite_are_told():
    module = AnchorPositionModule(2, torch.ones(1, 4)).eval()
    module.logits.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the position logits are not finite"):
        module(torch.zeros(2, 4))


def test_second_derivatives_are_refused_by_the_fast_branch_not_zero(clip):
    tokens, embedded = embed_prompts(clip, ["cat", "red fox"], "X X")
    encoder = TextEncoder(clip).requires_grad_(False)
    accelerate(encoder)
    embedded.requires_grad_()
    features = encoder(embedded, tokens)
    assert encoder.forward.in_use
    (first,) = torch.autograd.grad(features.pow(2).sum(), embedded, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.pow(2).sum().backward()


def test_a_learner_without_anchors_moves_nothing(clip):
    tokens, embedded = embed_prompts(clip, ["cat", "red fox"], "X X")
    learner = nn.Module()
    learner.tokenized_prompts = tokens
    learner.token_prefix, learner.token_suffix = embedded[:, :1], embedded[:, 3:]
    learner.ctx = nn.Parameter(torch.zeros(2, embedded.shape[-1]))
    attach(learner, torch.zeros(0, embedded.shape[-1]))
    assert torch.equal(attachment_of(learner).end, embedded[0, tokens[0].argmax()])
