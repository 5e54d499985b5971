"""Small hosts written like public trainers, each with its loss and logits written out in float64.

``loss`` is the host's; ``slow_loss`` and ``slow_logits`` are the same on ``Slow``, with AnchorOPT's
objective where it belongs.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from clip import tokenize
from clip.model import CLIP
from torch import nn
from torch.nn import functional as F

from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer

from . import slow

NAMES = ["star", "blue circle", "red fox", "lamp"]
N_CTX, CE, KD, TEMPERATURE = 3, 10.0, 10.0, 2.0
HEADS = {"visual": 1, "text": 4}


def images(n, seed):
    """Images that differ: their colours, and noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(n, 3, 1, 1, generator=generator)
    return (2 * colours + torch.randn(n, 3, 32, 32, generator=generator)).double()


def batch(number, seed=None):
    labels = torch.tensor([[2, 0, 3, 1], [1, 1, 0, 2]])[number]
    seed = number if seed is None else seed
    return {"img": images(4, seed), "label": labels, "domain": torch.zeros(4, dtype=torch.long)}


BATCHES = [batch(number) for number in range(2)]
SUPPORT = images(4, 99)


SIZES = (32, 32, 2, 64, 8, 77, 49408, 64, HEADS["text"], 2)


@cache
def weights():
    """Random weights of a small CLIP."""
    torch.manual_seed(0)
    state = {name: value.double() for name, value in CLIP(*SIZES).state_dict().items()}
    # The objective is computed in float32: features that hardly differ would multiply its errors.
    for name, value in state.items():
        value *= 50 if "token_embedding" in name else 1
    state["logit_scale"] = torch.tensor(4.0).double().log()
    return state


def loaded_clip():
    """The small CLIP, built and loaded as public repositories do."""
    clip = CLIP(*SIZES)
    clip.load_state_dict(weights())
    return clip.eval()


class Learner(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.tokenized_prompts = tokenize([f"{'X ' * N_CTX}{name}." for name in NAMES])
        with torch.no_grad():
            embedded = clip.token_embedding(self.tokenized_prompts)
        self.ctx = nn.Parameter(torch.randn(N_CTX, embedded.shape[-1]))
        self.register_buffer("token_prefix", embedded[:, :1])
        self.register_buffer("token_suffix", embedded[:, 1 + N_CTX :])

    def forward(self):
        context = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, context, self.token_suffix], 1)


class TextEncoder(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.transformer, self.ln_final = clip.transformer, clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.text_projection = clip.text_projection

    def forward(self, prompts, tokens):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class Model(nn.Module):
    learner_type = Learner

    def __init__(self, clip):
        super().__init__()
        self.image_encoder = clip.visual
        self.prompt_learner = self.learner_type(clip)
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.logit_scale

    def images(self, image):
        return self.image_encoder(image)

    def texts(self):
        return self.text_encoder(self.prompt_learner(), self.tokenized_prompts)

    def forward(self, image):
        ours, texts = self.images(image), self.texts()
        ours = ours / ours.norm(dim=-1, keepdim=True)
        texts = texts / texts.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * ours @ texts.t()


class Slow:
    """A host's weights and the plain CLIP in float64, before a step.

    Attributes:
        p: the host's weights by CLIP's names; those that the host trains are leaves.
        learned: the leaves by the names of the host's model.
    """

    def __init__(self, trainer):
        self.plain = weights()
        self.host = type(trainer)
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        self.learned, self.p = {}, {}
        for name, value in trainer.model.state_dict(keep_vars=True).items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            own = value.detach().double().clone().requires_grad_(name in trained)
            if name in trained:
                self.learned[name] = own
            self.p[name.replace("image_encoder.", "visual.").replace("text_encoder.", "")] = own
        self.p = self.host.effective(self.p)
        self.anchors = self.p["prompt_learner.anchoropt.anchors"]

    def image(self, images, s=None, **prompts):
        s = self.p if s is None else s
        heads = HEADS["visual"]
        return torch.stack([slow.image_feature(x.double(), s, heads, **prompts) for x in images])

    def texts(self):
        p = self.p
        matrix = slow.softmax(p["prompt_learner.anchoropt.logits"])
        found = []
        for c, name in enumerate(NAMES):
            eot = int(tokenize(f"{'X ' * N_CTX}{name}.").argmax()) + len(self.anchors)
            prefix, suffix = (p[f"prompt_learner.token_{part}"][c] for part in ("prefix", "suffix"))
            context = p["prompt_learner.ctx"]
            prompt = slow.arranged(prefix, context, self.anchors, matrix, suffix)
            found.append(slow.text_feature(prompt, eot, p, HEADS["text"]))
        return torch.stack(found)

    def l_n(self, images):
        return slow.logits(self.image(images), self.texts(), self.p["logit_scale"])

    @torch.no_grad()
    def l_a(self, images):
        texts = [
            slow.anchor_feature(self.anchors, name, tokenize, self.plain, HEADS["text"])
            for name in NAMES
        ]
        image = self.image(images, self.plain)
        return slow.logits(image, torch.stack(texts), self.plain["logit_scale"])

    def objective(self, l_n, images, labels):
        """The objective of each image."""
        return slow.objective(l_n, self.l_a(images), labels, CE, KD, TEMPERATURE)


class Host(TrainerX):
    """CoOp."""

    model_type = Model

    def build_data_loader(self):
        names = dict(enumerate(NAMES))
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=NAMES))
        self.train_loader_x, self.test_loader = BATCHES, BATCHES[1:]
        self.train_loader_u = self.val_loader = None
        self.num_classes, self.num_source_domains, self.lab2cname = len(NAMES), 1, names

    def is_trained(self, name):
        return "prompt_learner" in name

    def build_model(self):
        clip = loaded_clip()
        torch.manual_seed(1)
        self.model = self.model_type(clip).double()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.is_trained(name))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch):
        loss = self.loss(*self.parse_batch_train(batch))
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}

    def loss(self, image, label):
        return F.cross_entropy(self.model(image), label)

    @staticmethod
    def effective(p):
        return p

    @classmethod
    def slow_logits(cls, slow, images):
        return slow.l_n(images)

    @classmethod
    def slow_loss(cls, slow, images, labels):
        return slow.objective(cls.slow_logits(slow, images), images, labels).mean()


# ---------------------------------------------------------------------- hosts that train CLIP
class NormsOfImages(Host):
    """LASP: the layer norms of the image tower, and a cross-entropy between texts."""

    def is_trained(self, name):
        norms = "image_encoder" in name and "ln_" in name
        return norms or super().is_trained(name)

    def loss(self, image, label):
        texts = F.normalize(self.model.texts(), dim=-1)
        between = F.cross_entropy(10 * texts @ TEXTS.t(), torch.arange(len(NAMES)))
        return super().loss(image, label) + 2 * between

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        between = 10 * slow.unit(slow_.texts()) @ TEXTS.t()
        between = slow.cross_entropy(between, torch.arange(len(NAMES))).mean()
        return super().slow_loss(slow_, images, labels) + 2 * between


TEXTS = torch.randn(4, 32, generator=torch.Generator().manual_seed(5)).double()


class Biases(Host):
    """BitFit: all biases of both towers."""

    def is_trained(self, name):
        return name.endswith("bias") or super().is_trained(name)


class NormsOfTexts(Host):
    def is_trained(self, name):
        norms = "text_encoder" in name and "ln_" in name
        return norms or super().is_trained(name)


class Whole(Host):
    """Full fine-tuning, the temperature too."""

    def is_trained(self, name):
        return True


class LoRA(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.base = linear
        self.a = nn.Parameter(0.1 * torch.randn(2, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()


class LowRank(Host):
    """CLIP-LoRA: low-rank additions inside both towers."""

    class model_type(Model):
        def __init__(self, clip):
            for tower in (clip.transformer, clip.visual.transformer):
                for block in tower.resblocks:
                    block.mlp.c_fc = LoRA(block.mlp.c_fc)
            super().__init__(clip)

    def is_trained(self, name):
        return name.endswith(("c_fc.a", "c_fc.b")) or super().is_trained(name)

    @staticmethod
    def effective(p):
        for name in [name for name in p if name.endswith("c_fc.a")]:
            fc = name.removesuffix(".a")
            p[f"{fc}.weight"] = p[f"{fc}.base.weight"] + p[f"{fc}.b"] @ p[f"{fc}.a"]
            p[f"{fc}.bias"] = p[f"{fc}.base.bias"]
        return p


class Prompted(nn.Module):
    """CLIP's image tower with prompts given by keyword; they start at zero."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image, *, prompts=None):
        visual = self.visual
        x = visual.conv1(image).flatten(2).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        x = x + visual.positional_embedding
        if prompts is not None:
            x = torch.cat([x, prompts.expand(len(x), -1, -1)], 1)
        x = visual.transformer(visual.ln_pre(x).permute(1, 0, 2))
        return visual.ln_post(x[0]) @ visual.proj


class PromptsByKeyword(Host):
    class model_type(Model):
        def __init__(self, clip):
            super().__init__(clip)
            self.image_encoder = Prompted(clip.visual)
            self.image_prompts = nn.Parameter(torch.randn(2, 64))

        def images(self, image):
            return self.image_encoder(image, prompts=self.image_prompts)

    def is_trained(self, name):
        return "image_prompts" in name or super().is_trained(name)

    @staticmethod
    def effective(p):
        return {name.replace("visual.visual.", "visual."): value for name, value in p.items()}

    @classmethod
    def slow_logits(cls, slow_, images):
        image = slow_.image(images, prompts=slow_.p["image_prompts"])
        return slow.logits(image, slow_.texts(), slow_.p["logit_scale"])


# ---------------------------------------------------------------------- whose loss is it?
class Further(Host):
    """TextRefiner, KgDePT: a local cross-entropy, an l1 loss, a class head, before and after."""

    class model_type(Model):
        def __init__(self, clip):
            super().__init__(clip)
            self.head = nn.Linear(32, len(NAMES))

    def is_trained(self, name):
        return name.startswith("head") or super().is_trained(name)

    def loss(self, image, label):
        model = self.model
        head = F.cross_entropy(model.head(model.images(image)), label)
        texts = model.texts()
        local = F.cross_entropy(
            model.images(image).repeat_interleave(2, 0) @ texts.t(), label.repeat_interleave(2)
        )
        own = F.cross_entropy(model(image), label)
        return head + own + 0.5 * local + F.l1_loss(texts, torch.zeros_like(texts))

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        p, image, texts = slow_.p, slow_.image(images), slow_.texts()
        head = slow.cross_entropy(image @ p["head.weight"].t() + p["head.bias"], labels).mean()
        local = slow.cross_entropy(image @ texts.t(), labels).mean()
        own = super().slow_loss(slow_, images, labels)
        return head + own + 0.5 * local + texts.abs().mean()


class Contrastive(Host):
    """A cross-entropy within the batch, of as many images as classes, before the prompt's own."""

    def loss(self, image, label):
        logits = self.model(image)
        within = F.cross_entropy(logits[:, label], torch.arange(len(label)))
        return within + F.cross_entropy(logits, label)

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        l_n = slow_.l_n(images)
        within = slow.cross_entropy(l_n[:, labels], torch.arange(len(labels))).mean()
        return within + super().slow_loss(slow_, images, labels)


# ---------------------------------------------------------------------- reductions and parts
class EachImage(Host):
    """``reduction="none"``, and weights of the images."""

    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def loss(self, image, label):
        losses = F.cross_entropy(self.model(image), label, reduction="none")
        return (losses * self.weights.double()).sum()

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        losses = slow_.objective(slow_.l_n(images), images, labels)
        return (losses * cls.weights.double()).sum()


class Summed(Host):
    """``reduction="sum"``, divided by the number of images."""

    def loss(self, image, label):
        return nn.CrossEntropyLoss(reduction="sum")(self.model(image), label) / len(label)


class Halves(Host):
    """The mean of the losses of two parts of a batch, encoded at once."""

    def loss(self, image, label):
        parts = zip(self.model(image).split([1, 3]), label.split([1, 3]), strict=True)
        return sum(F.cross_entropy(*part) for part in parts) / 2

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        losses = slow_.objective(slow_.l_n(images), images, labels)
        return (losses[:1].mean() + losses[1:].mean()) / 2


class HalvesAlone(Host):
    """The same of two halves, both encoded before both losses."""

    def loss(self, image, label):
        outputs = [self.model(part) for part in image.chunk(2)]
        parts = zip(outputs, label.chunk(2), strict=True)
        return sum(F.cross_entropy(*part) for part in parts) / 2


class Views(Host):
    """Weak and strong views in one call, one loss for all (LASP with K_TRANSFORMS)."""

    def loss(self, image, label):
        return super().loss(torch.cat([image, image.flip(-1)]), label.repeat(2))

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        images = torch.cat([images, images.flip(-1)])
        return super().slow_loss(slow_, images, labels.repeat(2))


class ViewsApart(Views):
    """Weak and strong views in one call, a loss for each."""

    def loss(self, image, label):
        weak, strong = self.model(torch.cat([image, image.flip(-1)])).chunk(2)
        return (F.cross_entropy(weak, label) + F.cross_entropy(strong, label)) / 2


class SecondView(Host):
    """The loader gives two views; the first makes pseudo-labels, the second is learned from."""

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_x = [
            {**one, "img": [one["img"].flip(-1) + 0.1, one["img"]]} for one in BATCHES
        ]

    def parse_batch_train(self, batch):
        return batch["img"], batch["label"]

    def loss(self, image, label):
        with torch.no_grad():
            self.model(image[0])
        return F.cross_entropy(self.model(image[1]), label)

    @classmethod
    def slow_loss(cls, slow_, images, labels):
        return super().slow_loss(slow_, images[1], labels)


class SecondViewByHand(SecondView):
    """The same, without a call of the model."""

    def loss(self, image, label):
        model = self.model
        _, ours = (F.normalize(model.images(view), dim=-1) for view in image)
        texts = F.normalize(model.texts(), dim=-1)
        return F.cross_entropy(ours @ texts.t() * model.logit_scale.exp(), label)


class SecondViewTuned(SecondViewByHand):
    """The same, with trained biases."""

    def is_trained(self, name):
        return name.endswith("bias") or super().is_trained(name)


class SecondViewWithin(SecondView):
    """The same, in a model that computes its loss itself."""

    class model_type(Model):
        def forward(self, image, label=None):
            if label is None:
                return super().forward(image)
            self.images(image[0])
            return F.cross_entropy(super().forward(image[1]), label)

    def loss(self, image, label):
        self.model(image[0], label=None)
        return self.model(image, label)


# ---------------------------------------------------------------------- other images first
class Prototypes(Host):
    """Encodes a support set of as many images first, in training and in a test of its own."""

    def logits(self, image):
        model = self.model
        with torch.no_grad():
            prototypes = F.normalize(model.images(SUPPORT), dim=-1)
        return model(image) + F.normalize(model.images(image), dim=-1) @ prototypes.t()

    def loss(self, image, label):
        return F.cross_entropy(self.logits(image), label)

    def model_inference(self, image):
        return self.logits(image)

    @classmethod
    def slow_logits(cls, slow_, images):
        image, support = (slow.unit(slow_.image(x)) for x in (images, SUPPORT))
        return slow_.l_n(images) + image @ support.t()


class PrototypesInALoop(Prototypes):
    """The same, in a loop of its own."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.logits(image), label)
        return 0.0


class Crops(Host):
    """A test over several crops of each image."""

    def model_inference(self, image):
        crops = torch.cat([image, image.flip(-1), image.roll(1, -1)])
        return self.model(crops).unflatten(0, (3, -1)).mean(0)

    @classmethod
    def slow_test_logits(cls, slow_, images):
        crops = (images, images.flip(-1), images.roll(1, -1))
        return sum(slow_.l_n(crop) for crop in crops) / 3


class Reversed(Host):
    """Its test reverses the batch, and the logits back."""

    def model_inference(self, image):
        return self.model(image.flip(0)).flip(0)


class Sorted(Host):
    """Its test sorts the images by brightness, in a loop of its own."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            order = image.flatten(1).mean(1).argsort()
            self.evaluator.process(self.model(image[order])[order.argsort()], label)
        return 0.0


class Ahead(Host):
    """Its tests have several batches."""

    def build_data_loader(self):
        super().build_data_loader()
        self.test_loader = [batch(seed % 2, seed) for seed in range(4)]


class EncodesAhead(Ahead):
    """Its loop encodes a batch before the logits of the one before are counted."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        before = None
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            output = self.model(image)
            if before is not None:
                self.evaluator.process(*before)
            before = output, label
        self.evaluator.process(*before)
        return 0.0


class ParsesAhead(Ahead):
    """Its loop reads a batch while the one before is encoded."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        batches = iter(self.test_loader)
        following = self.parse_batch_test(next(batches))
        while following is not None:
            image, label = following
            batch = next(batches, None)
            following = None if batch is None else self.parse_batch_test(batch)
            self.evaluator.process(self.model(image), label)
        return 0.0


class ParsesAll(Ahead):
    """Its loop reads all batches first."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        for image, label in [self.parse_batch_test(batch) for batch in self.test_loader]:
            self.evaluator.process(self.model(image), label)
        return 0.0


class Mirrored(Host):
    """Its test mirrors each image."""

    def model_inference(self, image):
        return self.model(image.flip(-1))

    @classmethod
    def slow_test_logits(cls, slow_, images):
        return slow_.l_n(images.flip(-1))


class TwoViews(Host):
    """A test over two views of each image, encoded one after the other."""

    def model_inference(self, image):
        return (self.model(image.flip(-1)) + self.model(image)) / 2

    @classmethod
    def slow_test_logits(cls, slow_, images):
        return (slow_.l_n(images) + slow_.l_n(images.flip(-1))) / 2


class InParts(Host):
    """Its test encodes three images at a time."""

    def model_inference(self, image):
        return torch.cat([self.model(part) for part in image.split(3)])


# ---------------------------------------------------------------------- each parameter's gradient
class ProGrad(Host):
    """Projects the gradient of each parameter, as ProGrad does."""

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        logits = self.model(image)
        general = (logits.log_softmax(-1) * SOFT).sum() / 4
        own = F.cross_entropy(logits, label)
        parameters = list(self.model.prompt_learner.parameters())
        self.model_zero_grad()
        general.backward(retain_graph=True)
        directions = [p.grad.clone() for p in parameters]
        self.model_zero_grad()
        own.backward()
        for p, direction in zip(parameters, directions, strict=True):
            direction = direction / torch.linalg.norm(direction)
            product = (p.grad * direction).sum()
            if product < 0:
                p.grad = p.grad - product * direction
        self.model_update()
        return {"loss": own.item()}


SOFT = torch.eye(4)[[1, 2, 3, 0]]

HOSTS = [
    *(Host, NormsOfImages, Biases, NormsOfTexts, Whole, LowRank, PromptsByKeyword),
    *(Further, Contrastive, EachImage, Summed, Halves, HalvesAlone, Views, ViewsApart),
    *(SecondView, SecondViewByHand, SecondViewTuned, SecondViewWithin),
    *(EncodesAhead, ParsesAhead, ParsesAll),
    *(Prototypes, PrototypesInALoop, Crops, Reversed, Sorted, Mirrored, TwoViews, InParts),
]
