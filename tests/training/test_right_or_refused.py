"""Losses, images and weights of CLIP: each is the right one, or gets one line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from clip.model import CLIP, LayerNorm
from torch import nn
from torch.nn import functional as F

from anchoropt_plugin import PromptHook, UserError, register_hook
from anchoropt_plugin.commands.check.independent import record_steps
from anchoropt_plugin.encoders.image_calls import ImageCall
from anchoropt_plugin.encoders.plain_clip import PlainCLIP, PlainImages
from anchoropt_plugin.training.predictor import Predictor
from dassl.utils import load_checkpoint

from . import lookalikes
from .lookalikes import BATCHES, CE, SUPPORT, Biases, Host, Learner, Model, ProGrad, SecondView
from .test_probe import build


def step(host, tmp_path, **keys):
    trainer = build(host, tmp_path, **keys)
    trainer.set_model_mode("train")
    trainer.batch_idx = 0
    return trainer, trainer.forward_backward(trainer.train_loader_x[0])


# ---------------------------------------------------------------------- which loss
class OwnOrder(Host):
    """Its classes have an order of their own, and so have its targets."""

    def loss(self, image, label):
        order = torch.tensor([1, 2, 3, 0])
        return F.cross_entropy(self.model(image)[:, order], order.argsort()[label])


class OwnLabels(Host):
    """The same, with labels that ``parse_batch_train`` makes."""

    def parse_batch_train(self, batch):
        image, label = super().parse_batch_train(batch)
        return image, (label + 1) % 4

    def loss(self, image, label):
        return F.cross_entropy(self.model(image).roll(1, 1), label)


class OwnColumns(Host):
    """Its classes have an order of their own, which the labels of a batch do not show."""

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_x = [{**batch, "label": torch.full((4,), 2)} for batch in BATCHES]

    def loss(self, image, label):
        return F.cross_entropy(self.model(image)[:, [1, 0, 2, 3]], label)


class OwnPrompts(Host):
    """Its prompts have an order of their own, but its logits do not."""

    class model_type(Model):
        def texts(self):
            learner, order = self.prompt_learner, torch.tensor([1, 2, 3, 0])
            texts = self.text_encoder(learner()[order], self.tokenized_prompts[order])
            return texts[order.argsort()]


def test_prompts_in_another_order_whose_logits_are_in_the_usual_one(tmp_path):
    trainer, _ = step(OwnPrompts, tmp_path)
    assert trainer.anchoropt.is_in_training


class AddsInPlace(Host):
    """LASP: its other losses are added to the first in place."""

    def loss(self, image, label):
        loss = super().loss(image, label)
        loss += 5
        return loss


def test_the_probe_sees_the_objective_before_a_host_adds_to_it(tmp_path):
    trainer = build(AddsInPlace, tmp_path)
    trainer.set_model_mode("train")
    trainer.batch_idx = 0
    with record_steps(trainer.anchoropt) as steps:
        summary = trainer.forward_backward(trainer.train_loader_x[0])
    assert summary["loss"] == pytest.approx(5 + steps[0].loss.item())


class OnlyWithin(Host):
    def loss(self, image, label):
        return F.cross_entropy(self.model(image)[:, label], torch.arange(len(label)))


class Soft(Host):
    """Learns from a teacher's probabilities."""

    def loss(self, image, label):
        probabilities = F.one_hot(label, 4) * 0.7 + torch.tensor([0.1, 0.05, 0.1, 0.05])
        return F.cross_entropy(self.model(image), probabilities.double())


class Chosen(Host):
    """A loss of some of the images, in an order of its own."""

    def loss(self, image, label):
        some = torch.tensor([3, 1])
        return F.cross_entropy(self.model(image)[some], label[some])


class Shuffled(Host):
    """Shuffles the images before its model, and sorts the logits back."""

    def loss(self, image, label):
        order = torch.tensor([1, 2, 3, 0])
        return F.cross_entropy(self.model(image[order])[order.argsort()], label)


class ShufflesInItsModel(Host):
    """The same, in the model."""

    class model_type(Model):
        def images(self, image):
            return super().images(image.flip(0)).flip(0)


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        (Shuffled, r"\(4, 4\) of the images of the batch in another order"),
        (ShufflesInItsModel, r"\(4, 4\) of the images of the batch in another order"),
        (OwnOrder, r"\(4, 4\) whose targets are not the labels of the batch"),
        (OwnLabels, r"\(4, 4\) whose targets are not the labels of the batch"),
        (OwnColumns, r"\(4, 4\) whose column 1 is not class 'blue circle' but 'star'"),
        (OnlyWithin, r"\(4, 4\) whose targets are not the labels of the batch"),
        (Soft, r"\(4, 4\) whose targets are not the labels of the batch"),
        (Chosen, r"\(2, 4\) of images that its image encoder did not get in one call"),
    ],
)
def test_a_loss_that_is_not_the_prompt_s_is_told(host, seen, tmp_path):
    with pytest.raises(UserError, match=f"{host.__name__} computes no F.cross_entropy .*{seen}"):
        step(host, tmp_path)


class Smoothed(Host):
    """Its targets are the labels, as probabilities."""

    def loss(self, image, label):
        return F.cross_entropy(self.model(image), 0.9 * F.one_hot(label, 4).double() + 0.025)


def test_smoothed_labels_are_labels(tmp_path):
    trainer, _ = step(Smoothed, tmp_path)
    assert trainer.anchoropt.is_in_training


def test_losses_of_each_image_are_told_once(tmp_path, caplog):
    trainer, _ = step(lookalikes.EachImage, tmp_path)
    trainer.forward_backward(trainer.train_loader_x[1])
    assert caplog.text.count("takes its cross-entropy with reduction='none'") == 1
    step(Host, tmp_path)
    assert caplog.text.count("takes its cross-entropy with reduction='none'") == 1


class TwoSets(Host):
    """Encodes two sets of images that the loader did not give."""

    def loss(self, image, label):
        noisy = self.model(image + torch.rand_like(image))
        self.model.images(SUPPORT + torch.rand_like(SUPPORT))
        return F.cross_entropy(noisy, label)


def test_images_that_cannot_be_told_apart(tmp_path):
    with pytest.raises(UserError, match="encodes 2 sets of 4 images that the loader did not give"):
        step(TwoSets, tmp_path)


class BothViews(SecondView):
    """Averages the logits of two views."""

    def loss(self, image, label):
        return F.cross_entropy((self.model(image[0]) + self.model(image[1])) / 2, label)


class MirroredToo(Host):
    """Averages the logits of the loader's images and of mirrored ones."""

    def loss(self, image, label):
        return F.cross_entropy((self.model(image) + self.model(image.flip(-1))) / 2, label)


class BothFeatures(SecondView):
    """Averages the features of two views."""

    def loss(self, image, label):
        model = self.model
        ours = F.normalize(model.images(image[0]) + model.images(image[1]), dim=-1)
        return F.cross_entropy(ours @ F.normalize(model.texts(), dim=-1).t(), label)


class OwnView(Host):
    """Learns from a view of its own, after the loader's images."""

    def loss(self, image, label):
        self.model.images(image)
        return F.cross_entropy(self.model(image + 0.1), label)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (BothViews, "encodes 2 sets of 4 images in one step, and AnchorOPT cannot tell"),
        (BothFeatures, "encodes 2 sets of 4 images in one step, and AnchorOPT cannot tell"),
        (MirroredToo, "mixes the outputs of its model for 2 sets of 4 images in the logits"),
        (OwnView, r"seen over logits: \(4, 4\) of images that are not the loader's"),
    ],
)
def test_logits_of_several_views_or_of_another_one_are_told(host, says, tmp_path):
    with pytest.raises(UserError, match=says):
        step(host, tmp_path)


def test_a_trainer_can_be_copied_after_a_step(tmp_path):
    trainer, _ = step(SecondView, tmp_path)
    assert trainer.anchoropt.features.calls
    copied = copy.deepcopy(trainer.model)  # the forward hooks of the encoder are copied too
    assert torch.equal(copied.eval()(SUPPORT), trainer.model.eval()(SUPPORT))


class Claimed(Learner):
    """For a hook of its own."""


class ClaimingHook(PromptHook):
    def is_of_prompt_loss(self, logits, n_images, n_classes):
        return logits.shape == (n_images, 3)


register_hook(Claimed, ClaimingHook())


class WithHead(Host):
    def loss(self, image, label):
        self.losses = (
            F.cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])),
            F.cross_entropy(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])),
        )
        return super().loss(image, label)


class ClaimedHead(WithHead):
    class model_type(Model):
        learner_type = Claimed


@pytest.mark.parametrize(("host", "weight"), [(WithHead, 1.0), (ClaimedHead, CE)])
def test_a_hook_counts_a_further_loss_to_the_prompt_s(host, weight, tmp_path):
    trainer, _ = step(host, tmp_path)
    first, second = (loss.exp().item() for loss in trainer.losses)
    assert first == pytest.approx(3.0**weight) and second == pytest.approx(2.0)


# ---------------------------------------------------------------------- which weights
def trained(host, tmp_path):
    """A trainer after a step, and the plain CLIP's features and those of the host."""
    trainer, _ = step(host, tmp_path)
    features = trainer.anchoropt.plain.clip.visual(SUPPORT), trainer.model.images(SUPPORT)
    assert not torch.allclose(*features, atol=1e-4)
    return trainer, features


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)


class ThawsLate(Host):
    """Begins to train layer norms after its model was built."""

    def before_epoch(self):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name or "ln_1" in name)


def test_a_host_that_begins_to_train_clip_later(tmp_path):
    trainer = build(ThawsLate, tmp_path)
    plain = trainer.model.images(SUPPORT).detach()
    trainer.epoch, trainer.batch_idx = 0, 0
    trainer.before_epoch()
    trainer.set_model_mode("train")
    trainer.forward_backward(BATCHES[0])
    assert not torch.allclose(trainer.model.images(SUPPORT), plain, atol=1e-4)
    assert torch.equal(trainer.anchoropt.plain.clip.visual(SUPPORT), plain)


def test_one_whose_weights_have_changed_before(tmp_path):
    trainer = build(ThawsLate, tmp_path)
    trainer.epoch = 0
    with torch.no_grad():
        trainer.model.image_encoder.transformer.resblocks[0].ln_1.weight.mul_(2)
    with pytest.raises(UserError, match=r"trains weights of CLIP .* have changed since: give them"):
        trainer.before_epoch()


@pytest.mark.parametrize("host", [Biases, ThawsLate])
def test_a_checkpoint_of_tuned_weights_leaves_the_plain_clip(host, tmp_path):
    trainer, (plain, tuned) = trained(Biases, tmp_path / "a")
    trainer.save_model(0, str(tmp_path / "a"))
    tested = build(host, tmp_path / "b")
    tested.load_model(str(tmp_path / "a"), 1)
    torch.testing.assert_close(tested.model.images(SUPPORT), tuned)
    assert torch.equal(tested.anchoropt.plain.clip.visual(SUPPORT), plain)
    tested.anchoropt.features.clear()
    tested.model.images(SUPPORT)
    want = F.normalize(plain, dim=-1).float()
    torch.testing.assert_close(tested.anchoropt.features.value, want)


class StartsTuned(Host):
    """Loads tuned weights into its model while it builds it."""

    def build_model(self):
        super().build_model()
        if self.cfg.MODEL.INIT_WEIGHTS:
            for parameter in self.model.image_encoder.parameters():
                parameter.data.copy_(2 * parameter.data)


def test_initial_weights_that_are_tuned_leave_the_plain_clip(tmp_path):
    plain = build(Host, tmp_path / "a").model.images(SUPPORT)
    trainer = build(StartsTuned, tmp_path / "b", init_weights="tuned.pth")
    assert not torch.allclose(trainer.model.images(SUPPORT), plain)
    assert torch.equal(trainer.anchoropt.plain.clip.visual(SUPPORT), plain)


def test_a_resnet_in_training_mode_is_not_plain():
    """Batch norm then uses the statistics of the batch, and changes its own."""
    torch.manual_seed(0)
    clip = CLIP(32, 32, (1, 1, 1, 1), 64, None, 77, 100, 64, 1, 1).requires_grad_(False).eval()
    images = torch.randn(4, 3, 32, 32)
    want = clip.visual(images)
    plain = PlainCLIP(clip)
    encoder, features = clip.visual.train(), PlainImages(plain)
    for _ in range(2):
        compute = features(encoder, (images,), {}, encoder(images))
        torch.testing.assert_close(compute(), want)
    torch.testing.assert_close(features(encoder.eval(), (images,), {}, want), want)


class Added(nn.Module):
    """An image encoder with something frozen that is not CLIP's."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image, scale=1.0):
        return scale * self.visual(image) + 0.1


def test_a_frozen_addition_is_not_plain(clip):
    encoder, features = Added(clip.visual), PlainImages(PlainCLIP(clip))
    images = torch.randn(3, 3, 32, 32)
    compute = features(encoder, (images,), {"scale": 2.0}, encoder(images, scale=2.0))
    torch.testing.assert_close(compute(), clip.visual(images))


def test_features_that_a_hook_changes_later_are_not_plain(clip):
    """The adapter is no module of the encoder, and starts at zero."""
    images = torch.randn(3, 3, 32, 32)
    want, features = clip.visual(images), PlainImages(PlainCLIP(clip))
    adapter = nn.Linear(64, 64, bias=False)
    nn.init.zeros_(adapter.weight)
    mlp = clip.visual.transformer.resblocks[0].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: output + adapter(output))
    for value, mode in ((0.0, torch.enable_grad), (1.0, torch.enable_grad), (1.0, torch.no_grad)):
        nn.init.constant_(adapter.weight, value)
        with mode():
            compute = features(clip.visual, (images,), {}, clip.visual(images))
        torch.testing.assert_close(compute(), want)
    handle.remove()


def test_a_frozen_encoder_is_not_called_again(clip):
    features, images = PlainImages(PlainCLIP(clip)), torch.randn(3, 3, 32, 32)
    output = clip.visual(images)
    assert features(clip.visual, (images,), {}, output) is output
    assert all(
        a is b for a, b in zip(PlainCLIP(clip).clip.parameters(), clip.parameters(), strict=True)
    )


# ---------------------------------------------------------------------- images of a test
def test_images_in_another_order():
    images = torch.randn(4, 3, 8, 8)
    for others, reorders, rearranges in [
        (images, False, False),
        (images.clone(), False, False),
        (images.half(), False, False),
        (images.flip(0), True, True),
        (images[[0, 2, 1, 3]], True, True),
        (images.flip(-1), False, True),
        (images / 2, False, False),
        (images[:2], False, False),
    ]:
        call = ImageCall(others, torch.zeros(len(others), 2))
        assert (call.reorders(images), call.rearranges(images)) == (reorders, rearranges)
    given = ImageCall(images.flip(0), torch.zeros(4, 2), images)
    assert given.reorders(images) and not given.rearranges(images)


class Scales(Host):
    """Prepares the images for CLIP when it tests, here with another brightness."""

    def model_inference(self, image):
        return self.model(image / 2)


class MirrorsInItsModel(Host):
    class model_type(Model):
        def images(self, image):
            return super().images(image.flip(-1))


@pytest.mark.parametrize(
    ("host", "prepared"), [(Scales, lambda x: x / 2), (MirrorsInItsModel, lambda x: x.flip(-1))]
)
def test_images_that_a_host_prepares_for_clip_are_those_of_the_anchor_logits(
    host, prepared, tmp_path
):
    trainer, images = build(host, tmp_path), BATCHES[0]["img"]
    trainer.set_model_mode("eval")
    seen = []
    rule = trainer.anchoropt_rule
    features, rule.features = rule.features, lambda *args: seen.append(features(*args)) or seen[0]
    with torch.no_grad():
        trainer.model_inference(images)
        want = F.normalize(trainer.anchoropt.plain.clip.visual(prepared(images)), dim=-1)
    torch.testing.assert_close(seen[0], want.float())


class OwnOrderInTests(Host):
    """Its classes have an order of their own at a test."""

    def parse_batch_test(self, batch):
        return batch["img"], 3 - batch["label"]

    def model_inference(self, image):
        return self.model(image).flip(1)


class OwnOrderInALoop(OwnOrderInTests):
    """The same, in a loop of its own."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model(image).flip(1), label)
        return 0.0


@pytest.mark.parametrize("host", [OwnOrderInTests, OwnOrderInALoop])
def test_an_order_of_the_classes_of_a_hosts_own_is_refused_in_a_test(host, tmp_path):
    with pytest.raises(UserError, match=r"parse_batch_test of .* returns other labels than its"):
        build(host, tmp_path).test()


class Counts(Host):
    """Its own loop counts the logits as ``chosen`` says."""

    @staticmethod
    def chosen(number, label):
        raise NotImplementedError

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for number, batch in enumerate(self.test_loader):
            image, label = self.parse_batch_test(batch)
            chosen = self.chosen(number, label)
            self.evaluator.process(self.model(image)[chosen], label[chosen])
        return 0.0


class LeavesOut(Counts):
    chosen = staticmethod(lambda number, label: label != (9 if number == 0 else label[0]))


class Reorders(Counts):
    chosen = staticmethod(lambda number, label: slice(None) if number == 0 else label.argsort())


@pytest.mark.parametrize("host", [LeavesOut, Reorders])
def test_logits_of_other_images_than_a_batch_are_not_averaged_in_part(host, tmp_path):
    trainer = build(host, tmp_path)
    trainer.evaluator.process, taken = lambda *_: taken.append(1), []
    trainer.test_loader = BATCHES
    with pytest.raises(UserError, match=r"gives its evaluator some logits with the labels of a"):
        trainer.test()
    assert len(taken) == 1


class Mixes(Host):
    """Its own loop adds logits of a mirrored view to those of ``model_inference``."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            output = self.model_inference(image), self.model(image.flip(-1))
            self.evaluator.process(sum(output), label)
        return 0.0


def test_logits_of_model_inference_are_averaged_once(tmp_path, caplog):
    trainer, seen = build(Mixes, tmp_path), []
    trainer.evaluator.process = lambda output, label: seen.append(output)
    trainer.test()
    image = trainer.test_loader[0]["img"]
    with torch.no_grad():
        want = trainer.model_inference(image) + trainer.model(image.flip(-1))
    torch.testing.assert_close(seen[0], want)
    assert caplog.text.count("encodes images outside its model_inference, too") == 1


class InTrainingMode(Host):
    """Its own loop forgets the evaluation mode."""

    def test(self, split=None):
        self.set_model_mode("train")
        for _ in range(5):
            self.evaluator.process(self.model(self.test_loader[0]["img"]), None)
            position = self.anchoropt.position
            assert torch.equal(position.matrix(), position.most_likely())
        return 0.0


def test_a_test_in_training_mode_draws_no_noise(tmp_path):
    trainer = build(InTrainingMode, tmp_path, POSITION="gumbel", POSITION_INIT=0.0)
    trainer.evaluator.process = lambda *_: None
    trainer.test()
    position = trainer.anchoropt.position.train()
    drawn = torch.stack([position.draw() for _ in range(9)])
    assert not torch.equal(drawn, position.most_likely().expand_as(drawn))


class LoadsAll(Host):
    skipped = ()

    def build_model(self):
        super().build_model()
        if self.cfg.MODEL.INIT_WEIGHTS:
            self.load(self.cfg.MODEL.INIT_WEIGHTS)

    def load_model(self, directory, epoch=None):
        self.load(Path(directory, "prompt_learner", f"model.pth.tar-{epoch}"))

    def load(self, path):
        state = load_checkpoint(path)["state_dict"]
        state = {k: value for k, value in state.items() if k.split(".")[-1] not in self.skipped}
        self.model.load_state_dict(state, strict=False)


class RenamedLearner(Learner):
    """Its tensors have names of its own; its tokens are saved, too."""

    def __init__(self, clip):
        super().__init__(clip)
        self.norm = nn.BatchNorm1d(5)
        for own, usual in {"sos": "prefix", "rest": "suffix"}.items():
            self.register_buffer(own, self._buffers.pop(f"token_{usual}"))
        self.register_buffer("ids", self.__dict__.pop("tokenized_prompts"))

    def __getattr__(self, name):
        return self.ids if name == "tokenized_prompts" else super().__getattr__(name)

    def forward(self):
        return torch.cat([self.sos, self.ctx.expand(len(self.sos), -1, -1), self.rest], 1)


class RenamedHook(PromptHook):
    def dim(self, learner):
        return learner.sos.shape[-1]

    def n_ctx(self, learner):
        return len(learner.ctx)

    def first(self, learner):
        return 1

    def missing(self, learner):
        return []


register_hook(RenamedLearner, RenamedHook())


class LoadsAllRenamed(LoadsAll):
    class model_type(Model):
        learner_type = RenamedLearner


@pytest.mark.parametrize(
    ("host", "brought", "says"),
    [
        (LoadsAll, ["token_suffix"], "{0}has prompt_learner.token_suffix of other class names"),
        (LoadsAllRenamed, ["rest", "ids"], "{1}puts rest, ids of the checkpoint, which belong to"),
    ],
)
def test_a_checkpoint_that_brings_the_class_names_of_its_training_is_refused(
    host, brought, says, tmp_path, monkeypatch
):
    trainer = build(host, tmp_path / "a")
    learner, file = trainer.model.prompt_learner, tmp_path / "a/prompt_learner/model.pth.tar-1"
    for buffer in learner.buffers():
        if buffer.shape == (5,):  # the running statistics, as after a training
            buffer += 1
    trainer.save_model(0, str(tmp_path / "a"))
    build(host, tmp_path / "same", init_weights=str(file)).load_model(str(tmp_path / "a"), 1)
    monkeypatch.setattr(lookalikes, "NAMES", lookalikes.NAMES[::-1])
    tested = build(host, tmp_path / "b")
    state = "the state to load "
    with pytest.raises(UserError, match=says.format(state, f"load_model of {host.__name__} ")):
        tested.load_model(str(tmp_path / "a"), 1)
    with pytest.raises(UserError, match=says.format(state, f"build_model of {host.__name__}, .*")):
        build(host, tmp_path / "c", init_weights=str(file))
    monkeypatch.setattr(host, "skipped", brought)
    build(host, tmp_path / "d", init_weights=str(file)).load_model(str(tmp_path / "a"), 1)


class Drops(Host):
    """Its dropout is not registered, so it stays on in a test."""

    def build_model(self):
        super().build_model()
        self.dropout = nn.Dropout(0.5)

    def model_inference(self, image):
        return self.dropout(self.model(image))


@pytest.mark.parametrize("host", [Host, Drops])
@pytest.mark.parametrize("samples", [False, True])
def test_a_test_that_draws_random_numbers_says_so_and_predict_draws_none(
    host, samples, tmp_path, caplog
):
    trainer = build(host, tmp_path, SAMPLE_AT_EVAL=samples, POSITION="gumbel")
    trainer.test()
    assert ("draws random numbers in its test" in caplog.text) == (host is Drops and not samples)
    predictor = Predictor.of_trainer(trainer)
    images = trainer.test_loader[0]["img"]
    found = [predictor._tested(images) for _ in range(2)]
    assert torch.equal(*found) or samples


class OwnScale(Host):
    factor = 1.0

    def model_inference(self, image):
        return self.factor * self.model(image)


@pytest.mark.parametrize(
    ("spread", "says"),
    [(1, ""), (4, ""), (1 / 4, ""), (10, "10 times"), (0.01, "0.01 times")],
)
def test_logits_on_another_scale_than_the_anchor_logits_are_told(tmp_path, caplog, spread, says):
    trainer = build(OwnScale, tmp_path, ENSEMBLE="always")
    images, run = trainer.test_loader[0]["img"], trainer.anchoropt
    with torch.no_grad():
        own, anchors = trainer.model(images), run.logits(trainer.anchoropt_rule.features(4, images))
    trainer.factor = spread * (anchors.std(1).mean() / own.std(1).mean()).item()
    trainer.set_model_mode("eval")
    trainer.model_inference(images)  # not a test
    assert "spread" not in caplog.text
    trainer.test()
    trainer.test()
    assert caplog.text.count("logits spread") == caplog.text.count(f"spread {says}") == bool(says)


# ---------------------------------------------------------------------- gradients, views
@pytest.mark.parametrize("position", ["identity", "soft", "sinkhorn", "gumbel"])
def test_a_host_that_looks_at_each_gradient(position, tmp_path):
    trainer, _ = step(ProGrad, tmp_path, POSITION=position)
    parameters = list(trainer.model.prompt_learner.parameters())
    assert len(parameters) == 2 and all(p.grad.isfinite().all() for p in parameters)
    assert trainer.anchoropt.position.logits.grad.any() == (position != "identity")


class Pairs(Host):
    """CoPrompt: two views of each image, the labels last."""

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_x = [{**b, "img": [b["img"], b["img"].flip(-1)]} for b in BATCHES]

    def parse_batch_train(self, batch):
        return *batch["img"], batch["label"]


class Joined(Pairs):
    """LASP: the views in one batch."""

    def parse_batch_train(self, batch):
        return torch.cat(batch["img"]), batch["label"].repeat(2)


class Listed(Pairs):
    """The views in a list."""

    def parse_batch_train(self, batch):
        return batch["img"], batch["label"]


@pytest.mark.parametrize("host", [Pairs, Joined, Listed])
def test_stage_one_reads_images_with_their_labels(host, tmp_path):
    trainer = build(host, tmp_path)
    with torch.no_grad():
        for (got, labels), batch in zip(trainer._image_batches(), BATCHES, strict=True):
            images = torch.cat([batch["img"], batch["img"].flip(-1)])[: len(got)]
            want = F.normalize(trainer.model.images(images), dim=-1).float()
            torch.testing.assert_close(got, want)
            assert labels.tolist() == batch["label"].tolist() * (len(got) // 4)
            assert len(got) == (4 if host is Pairs else 8)


class Unlabelled(Pairs):
    def parse_batch_train(self, batch):
        return batch["img"]


def test_stage_one_without_labels_is_told(tmp_path):
    trainer = build(Unlabelled, tmp_path)
    with pytest.raises(UserError, match="returns no labels of the batch, which ANCHOR_CE_WEIGHT"):
        next(trainer._image_batches())
