"""The decorator on hosts written like public ones of other kinds than those in ``trainers``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train
from anchoropt_plugin import UserError, anchoropt, register_hook
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.prompts.hooks import PromptHook
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers.coop import PromptLearner
from trainers.host import PromptTrainer
from trainers.prompted_clip import PromptedCLIP

from .test_two_stages import build, command, root, run, weights

__all__ = ["root"]

M, DEPTH = 4, 3
KEYS = ["TRAINER.ANCHOROPT.POSITION_INIT", "0.0"]


class PromptedBlock(nn.Module):
    """A block of CLIP that holds a deep prompt of its own, as in IVLP's fork."""

    def __init__(self, plain, n_prompts, text_layer):
        super().__init__()
        self.attn, self.ln_1, self.mlp, self.ln_2 = plain.attn, plain.ln_1, plain.mlp, plain.ln_2
        self.attn_mask, self.text_layer = plain.attn_mask, text_layer
        width = plain.ln_1.weight.shape[0]
        self.VPT_shallow = nn.Parameter(0.1 * torch.randn(n_prompts, width)) if n_prompts else None

    def attention(self, x):
        mask = self.attn_mask
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x):
        if self.VPT_shallow is not None:
            prompt = self.VPT_shallow.half().to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            if self.text_layer:
                x = torch.cat([x[:1], prompt, x[1 + len(prompt) :]])
            else:
                x = torch.cat([x[: -len(prompt)], prompt])
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PromptedVision(nn.Module):
    """CLIP's image transformer with prompts of its own behind the patches."""

    def __init__(self, visual):
        super().__init__()
        names = "conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post", "proj"
        for name in (*names, "transformer", "input_resolution", "output_dim"):
            setattr(self, name, getattr(visual, name))
        self.VPT = nn.Parameter(0.1 * torch.randn(2, visual.class_embedding.shape[0]))

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        prompts = self.VPT.to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([x + self.positional_embedding.to(x.dtype), prompts], 1)
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2))
        return self.ln_post(x[0]) @ self.proj


def forked(clip, n_prompts=M):
    """The CLIP with deep prompts in the blocks of both towers."""
    clip.visual = PromptedVision(clip.visual)
    towers = (clip.transformer, n_prompts, True), (clip.visual.transformer, 2, False)
    for tower, n, text in towers:
        blocks = [
            PromptedBlock(block, n if 0 < i < DEPTH else 0, text)
            for i, block in enumerate(tower.resblocks)
        ]
        tower.resblocks = nn.Sequential(*blocks)
    return clip


class LossInside(PromptedCLIP):
    def forward(self, image, label=None):
        logits = super().forward(image)
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


@anchoropt
@TRAINER_REGISTRY.register()
class IndependentLike(TrainerX):
    """Prompts in the blocks of both towers, its loss inside the model, all of that saved."""

    def build_model(self):
        torch.manual_seed(0)
        clip = forked(load_clip("tiny"))
        self.model = LossInside(PromptLearner(self.cfg, self.dm.dataset.classnames, clip), clip)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name or "VPT" in name)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("Learner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = self.model(*self.parse_batch_train(batch))
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    parse_batch_train = PromptTrainer.parse_batch_train


def test_a_fork_whose_blocks_hold_the_prompts(root, tmp_path):
    run(root, tmp_path / "out", trainer="IndependentLike_AnchorOPT", keys=KEYS)
    trained = weights(tmp_path / "out", name="Learner")
    trainer = build(root, tmp_path / "out", trainer="IndependentLike_AnchorOPT", keys=KEYS)
    start = trainer.model.state_dict()
    moved = {key for key, value in trained.items() if not torch.equal(value, start[key])}
    prompts = {key for key in trained if "VPT" in key}
    assert len(prompts) == 2 * (DEPTH - 1) + 1
    own = {"prompt_learner.ctx", "prompt_learner.anchoropt.logits"}
    # The anchors are not there yet in a trainer that was only built.
    assert moved - {"prompt_learner.anchoropt.anchors"} == prompts | own


def test_its_layout_at_every_block_and_its_teacher(root, tmp_path):
    """The anchor's hidden states are carried over by hand, in the order of a drawn matrix."""
    trainer = build(root, tmp_path, trainer="IndependentLike_AnchorOPT", keys=KEYS)
    trainer.anchoropt_stage_one()
    model, run_ = trainer.model, trainer.anchoropt
    trainer.set_model_mode("train")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        prompts = model.prompt_learner()
        order = run_.position.matrix().argmax(-1).tolist()
        assert sorted(order) == list(range(M + 1)) != order
        got = model.text_encoder(prompts, model.tokenized_prompts)
        x = (prompts + model.text_encoder.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(model.text_encoder.transformer.resblocks):
            if 0 < number < DEPTH:
                rows = x.clone()
                for slot, token in enumerate(order):
                    soft = token < M
                    x[1 + slot] = block.VPT_shallow[token].half() if soft else rows[1 + slot]
            x = x + block.attention(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = model.text_encoder.ln_final(x.permute(1, 0, 2))
        eot = model.tokenized_prompts.argmax(-1)
        want = x[torch.arange(len(x)), eot] @ model.text_encoder.text_projection
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        run_.features.clear()
        prompted = model.image_encoder(images)
        teacher = F.normalize(load_clip("tiny").encode_image(images), dim=-1)
    torch.testing.assert_close(run_.features.value, teacher, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(F.normalize(prompted, dim=-1), teacher, atol=1e-2)


class Odd(PromptLearner):
    """For a hook of its own."""


class OddHook(PromptHook):
    def is_prompt_logits(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        return super().is_prompt_logits(logits, n_images, n_classes) and bool(logits.any())

    def plain_features(self, encoder, args, output) -> Tensor:
        return torch.ones_like(output)


register_hook(Odd, OddHook())


@anchoropt
@TRAINER_REGISTRY.register()
class OddHost(PromptTrainer):
    """Its first cross-entropy looks like the prompt's and is not."""

    node = "COOP"

    def build_learner(self, class_names, clip):
        return Odd(self.cfg, class_names, clip)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        other = F.cross_entropy(torch.zeros_like(output), label)
        prompt = F.cross_entropy(output, label)
        return {"other": other.item(), "prompt": prompt.item(), "logits": output.detach()}


def test_a_hook_says_which_loss_is_the_prompt_s_and_which_features_are_plain(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "0", "TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT", "3"]
    trainer = build(root, tmp_path, trainer="OddHost_AnchorOPT", keys=keys)
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    summary = trainer.forward_backward(batch)
    plain = F.cross_entropy(summary["logits"], batch["label"]).item()
    assert summary["prompt"] == pytest.approx(3 * plain, rel=1e-5)
    assert trainer.anchoropt.features.value.unique().numel() == 1


def odd_host(name, **members):
    """CoOp under another name, with some members replaced, and AnchorOPT on it."""
    host = TRAINER_REGISTRY.get("CoOp")
    anchoropt(TRAINER_REGISTRY.register()(type(name, (host,), {"node": "COOP", **members})))
    return f"{name}_AnchorOPT"


def test_a_host_that_is_decorated_twice_is_refused():
    odd_host("Twice")
    with pytest.raises(UserError, match=r"Twice_AnchorOPT is registered already: Twice has"):
        anchoropt(TRAINER_REGISTRY.get("Twice"))


def test_of_several_clips_the_one_of_the_prompts_is_taken(root, tmp_path):
    def build_model(self):
        self.teacher = load_clip("tiny")
        self.teacher.image_encoder = self.teacher.visual
        for parameter in self.teacher.parameters():
            parameter.data.mul_(1.5)
        TRAINER_REGISTRY.get("CoOp").build_model(self)

    trainer = build(root, tmp_path, trainer=odd_host("TeacherFirst", build_model=build_model))
    embedding = trainer.anchoropt.tower.clip.token_embedding.weight
    assert torch.equal(embedding, load_clip("tiny").token_embedding.weight)
    images = torch.randn(2, 3, 32, 32)
    trainer.anchoropt.features.clear()
    trainer.teacher.visual(images)
    assert trainer.anchoropt.features.value is None
    trainer.model.image_encoder(images)
    assert trainer.anchoropt.features.value is not None


def test_the_loss_of_another_head_is_not_the_prompt_s(root, tmp_path, caplog):
    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        head = torch.ones_like(output, requires_grad=True)  # learned, and not from prompts
        losses = [F.cross_entropy(logits, label) for logits in (head.relu(), output, output)]
        return {"plain": output.detach(), "losses": [loss.item() for loss in losses]}

    name = odd_host("HeadFirst", forward_backward=forward_backward)
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "1000"]
    trainer = build(root, tmp_path, trainer=name, keys=keys)
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    summary = trainer.forward_backward(batch)
    plain = F.cross_entropy(summary["plain"], batch["label"]).item()
    head, prompt, second = summary["losses"]
    assert head == pytest.approx(F.cross_entropy(torch.ones(1, 5), torch.zeros(1).long()).item())
    assert prompt > plain + 1e-3 and second == pytest.approx(plain, rel=1e-5)
    assert "several cross-entropies of its prompt's logits" in caplog.text


def test_mixup_in_two_terms_is_told(root, tmp_path, caplog):
    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        terms = [F.cross_entropy(output, targets) for targets in (label, label.roll(1))]
        return {"losses": [term.item() for term in terms], "logits": output.detach()}

    trainer = build(root, tmp_path, trainer=odd_host("MixUp", forward_backward=forward_backward))
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    summary = trainer.forward_backward(batch)
    mixed = F.cross_entropy(summary["logits"], batch["label"].roll(1)).item()
    assert summary["losses"][1] == pytest.approx(mixed, rel=1e-5)
    assert "or with other labels (as mixup)" in caplog.text


def log_first(output, label):
    F.cross_entropy(output, label).item()
    return F.cross_entropy(output, label, label_smoothing=0.2)


def weigh_hard_images(output, label):
    weights = F.cross_entropy(output, label, reduction="none").detach()
    return (weights / weights.sum() * F.cross_entropy(output, label, reduction="none")).sum()


def own_loss(output, label):
    F.cross_entropy(output, label).item()
    return -output.log_softmax(1)[:, label].mean()


def log_without_gradient(output, label):
    with torch.no_grad():
        F.cross_entropy(output, label)
    return F.cross_entropy(output, label)


@pytest.mark.parametrize("position", ["sinkhorn", "identity"])
@pytest.mark.parametrize(
    ("loss", "is_right"),
    [(log_first, 0), (weigh_hard_images, 0), (own_loss, 0), (log_without_gradient, 1)],
)
def test_a_cross_entropy_that_is_not_trained_gets_no_objective(
    root, tmp_path, loss, is_right, position
):
    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        trained = loss(output, label)
        self.model_backward_and_update(trained)
        return {"loss": trained.item(), "plain": F.cross_entropy(output.detach(), label).item()}

    name = odd_host(f"{loss.__name__}_{position}", forward_backward=forward_backward)
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "1000", "TRAINER.ANCHOROPT.POSITION", position]
    trainer = build(root, tmp_path, trainer=name, keys=keys)
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    if is_right:
        summary = trainer.forward_backward(batch)
        assert summary["loss"] > summary["plain"] + 1e-3
    else:
        with pytest.raises(UserError, match="does not train the first cross-entropy"):
            trainer.forward_backward(batch)


def test_a_copy_of_the_model_gets_the_anchors_too(root, tmp_path):
    def build_model(self):
        TRAINER_REGISTRY.get("CoOp").build_model(self)
        self.average = copy.deepcopy(self.model)

    trainer = build(root, tmp_path, trainer=odd_host("WithAverage", build_model=build_model))
    trainer.anchoropt_stage_one()
    learners = trainer.model.prompt_learner, trainer.average.prompt_learner
    assert torch.equal(*(learner.anchoropt.anchors for learner in learners))
    assert learners[1].anchoropt.has_anchors


def test_a_host_that_goes_round_forward_backward_or_model_inference_is_told(
    root, tmp_path, capsys, caplog
):
    def run_epoch(self):
        self.num_batches, self.batch_idx = 1, 0

    name = odd_host("OwnLoop", run_epoch=run_epoch)
    assert train.main(command(root, tmp_path / "a", name)) == 2
    assert "trained an epoch without its forward_backward" in capsys.readouterr().err
    trainer = build(
        root,
        tmp_path / "b",
        trainer=odd_host("OwnTest", test=lambda self, split=None: 0.5),
        classes="new",
    )
    assert trainer.test() == 0.5
    assert "OwnTest gives neither through its model_inference" in caplog.text


def test_a_second_learner_and_class_names_elsewhere_are_told(root, tmp_path, caplog):
    class Rolled(PromptLearner):
        def forward(self):
            prompts = super().forward()
            return torch.cat([prompts[:, :1], prompts[:, 1:].roll(2, 1)], 1)

    class Twice(PromptedCLIP):
        def __init__(self, learner, clip):
            other = copy.deepcopy(learner)
            super().__init__(learner, clip)
            self.other_learner, self.average = other, copy.deepcopy(learner)

    name = odd_host(
        "RolledTwice",
        build_learner=lambda self, names, clip: Rolled(self.cfg, names, clip),
        build_prompted_clip=lambda self, learner, clip: Twice(learner, clip),
    )
    trainer = build(root, tmp_path, trainer=name)
    assert "has a second prompt learner, other_learner" in caplog.text
    assert "learner, average" not in caplog.text  # a copy of one with anchors
    trainer.model.prompt_learner()
    trainer.model.prompt_learner()
    assert caplog.text.count("token_suffix does not follow the") == 1


def test_prompts_in_a_dict_are_told(root, tmp_path):
    class Dict(PromptLearner):
        def forward(self):
            return {"prompts": super().forward()}

    name = odd_host("DictHost", build_learner=lambda self, names, clip: Dict(self.cfg, names, clip))
    trainer = build(root, tmp_path, trainer=name)
    with pytest.raises(UserError, match="Dict returns a dict: expected prompts"):
        trainer.model.prompt_learner()
