"""What the hosts share: CLIP behind a prompt learner, and the trainer around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoropt_plugin import accelerate
from anchoropt_plugin.clip_models import load_clip, to_precision, tokenize, unknown_words
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.hooks import CHILD
from anchoropt_plugin.kept_features import keep_image_features
from anchoropt_plugin.runtime.utils.torchtools import is_of_classes, named_in
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights


def load_host_clip(cfg: Any, precision: str, device: torch.device) -> nn.Module:
    """The plain CLIP of ``MODEL.BACKBONE.NAME`` in the precision that the host asks for.

    It is on the CPU still, where prompts are embedded; ``device`` is where it is to run.

    Raises:
        UserError: an unknown backbone, or one whose pictures are of another size than INPUT.SIZE.
    """
    print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
    clip = load_clip(cfg.MODEL.BACKBONE.NAME)
    size, wanted = tuple(cfg.INPUT.SIZE), clip.visual.input_resolution
    if size != (wanted, wanted):
        raise UserError(
            f"INPUT.SIZE is {size}, but {cfg.MODEL.BACKBONE.NAME} takes pictures of "
            f"{wanted} x {wanted}: set INPUT.SIZE ({wanted},{wanted})"
        )
    return to_precision(clip, precision, device).cpu()


def warn_of_unknown_words(clip: nn.Module, texts: Sequence[str], what: str = "class names") -> None:
    """Say which words of ``texts`` the backbone was never trained on."""
    words = unknown_words(clip, texts)
    if words:
        print(
            f"Warning: the backbone never saw {len(words)} word(s) of the {what} "
            f"({', '.join(words)}): these mean nothing to it"
        )


def run_blocks(transformer: nn.Module, x: Tensor, deep: Sequence[Tensor], first: int) -> Tensor:
    """CLIP's transformer over ``x`` (L, N, d), with prompts written into it on the way.

    Before block i = 1, 2, … ``deep[i - 1]`` (n, d) overwrites the n rows from ``first`` on; without
    deep prompts it is ``transformer(x)``.
    """
    for index, block in enumerate(transformer.resblocks):
        if 0 < index <= len(deep):
            prompt = deep[index - 1].type(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x[:first], prompt, x[first + len(prompt) :]])
        x = block(x)
    return x


class TextEncoder(nn.Module):
    """CLIP's text transformer over prompts that are embedded already.

    (…, C, 77, d) prompts and (C, 77) tokens → (…, C, e) features, read at EOT. ``deep`` holds
    prompts (n, d) that overwrite n slots before the text blocks 1, 2, … (MaPLe).

    Attributes:
        deep_start: the first slot they overwrite; slot 0 is the one behind SOS.
    """

    deep_start = 0

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.transformer = clip.transformer
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.dtype = clip.dtype

    def forward(
        self, prompts: Tensor, tokenized_prompts: Tensor, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        x = prompts.flatten(0, -3) + self.positional_embedding.type(self.dtype)
        x = run_blocks(self.transformer, x.permute(1, 0, 2), deep, first=1 + self.deep_start)
        x = x.permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype).unflatten(0, prompts.shape[:-2])
        eot = tokenized_prompts.argmax(dim=-1)
        return x[..., torch.arange(len(eot)), eot, :] @ self.text_projection


class PromptedCLIP(nn.Module):
    """CLIP whose text features come from a prompt learner: images (B, 3, R, R) → logits (B, C).

    Args:
        prompt_learner: what ``build_learner`` of a ``PromptTrainer`` makes.
        clip: the plain CLIP.
        image_encoder: in place of CLIP's own.
    """

    def __init__(
        self, prompt_learner: nn.Module, clip: nn.Module, image_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.prompt_learner = prompt_learner
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip.visual if image_encoder is None else image_encoder
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.dtype = clip.dtype

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the images (B, e) and of the prompts (C, e), not normalised."""
        image_features = self.image_encoder(image.type(self.dtype))
        return image_features, self.text_encoder(self.prompt_learner(), self.tokenized_prompts)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(*self.features(image))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosines (B, C) of images (B, e) and texts (C, e), or (B, C, e) of each image."""
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return (self.logit_scale.exp() * image_features[:, None] @ text_features.mT)[:, 0]


def embed_prompts(
    clip: nn.Module, class_names: Sequence[str], context_words: str
) -> tuple[Tensor, Tensor]:
    """Tokens (C, 77) and embeddings (C, 77, d) of ``<context words> <class name>.``"""
    names = [name.replace("_", " ") for name in class_names]
    tokens = tokenize([f"{context_words} {name}." for name in names])
    with torch.no_grad():
        return tokens, clip.token_embedding(tokens).type(clip.dtype)


def initial_context(clip: nn.Module, words: str, n_ctx: int, *sets: int) -> tuple[str, Tensor]:
    """The words that a context starts from, and their embeddings.

    Args:
        clip: the plain CLIP, on the CPU.
        words: every token of theirs becomes a soft token, ``_`` reads as a blank; "" draws
            N(0, 0.02²) in place of them.
        n_ctx: soft tokens M, where there are no words.
        sets: leading dimensions of a drawn context.

    Returns:
        The words ("X X …" stand for what is drawn) and the context (*sets, M, d), or (M, d) of
        given words.
    """
    if words:
        words = words.replace("_", " ")
        tokens = tokenize([words])
        with torch.no_grad():
            ctx = clip.token_embedding(tokens)[0, 1 : int(tokens.argmax())].type(clip.dtype)
        return words, ctx.clone()
    shape = (*sets, n_ctx, clip.ln_final.weight.shape[0])
    ctx = nn.init.normal_(torch.empty(shape, dtype=clip.dtype), std=0.02)
    return " ".join(["X"] * n_ctx), ctx


class ContextLearner(nn.Module):
    """Soft tokens before the class names: what the prompt learners of all hosts hold.

    Args:
        clip: the plain CLIP, on the CPU.
        class_names: of C classes.
        words: that the soft tokens stand for.
        ctx: their initial values, (M, d) or (C, M, d).

    Attributes:
        tokenized_prompts: (C, 77), of ``<words> <class name>.``
    """

    def __init__(
        self, clip: nn.Module, class_names: Sequence[str], words: str, ctx: Tensor
    ) -> None:
        super().__init__()
        n_ctx = ctx.shape[-2]
        print(f'Initial context: "{words}"')
        print(f"Number of context words (tokens): {n_ctx}")
        self.ctx = nn.Parameter(ctx)
        self.frame(clip, class_names, words, n_ctx)

    def frame(
        self, clip: nn.Module, class_names: Sequence[str], words: str, n_slots: int
    ) -> Tensor:
        """Make the tokens and what stands around ``n_slots`` slots, which the words hold.

        Returns:
            The embeddings (C, n_slots, d) of the words in these slots.
        """
        self.tokenized_prompts, embedding = embed_prompts(clip, class_names, words)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_slots :])
        return embedding[:, 1 : 1 + n_slots]

    def context(self, ctx: Tensor) -> Sequence[Tensor]:
        """What stands in the slots one after the other, each part (…, n, d)."""
        return (ctx,)

    def prompts(self, ctx: Tensor) -> Tensor:
        """``[SOS] ctx [class name] . [EOT]``: (M, d), (C, M, d) or (B, 1, M, d) → (…, C, 77, d)."""
        parts = self.token_prefix, *self.context(ctx), self.token_suffix
        sets = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
        return torch.cat([part.expand(*sets, -1, -1) for part in parts], -2)


class PromptTrainer(TrainerX):
    """Trains what ``checkpointed`` names, the learner of ``build_learner``, and nothing else.

    Attributes:
        node: the host's node in ``cfg.TRAINER``.
    """

    node: str

    def check_cfg(self, cfg: Any) -> None:
        settings = cfg.TRAINER[self.node]
        if settings.PREC not in ("fp16", "fp32", "amp"):
            raise UserError(
                f"TRAINER.{self.node}.PREC is {settings.PREC!r}: one of fp16, fp32, amp"
            )
        if settings.N_CTX < 1:
            raise UserError(
                f"TRAINER.{self.node}.N_CTX is {settings.N_CTX}: a context has at least one token"
            )

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        """The host's prompt learner, for CLIP on the CPU."""
        raise NotImplementedError

    def build_prompted_clip(self, learner: nn.Module, clip: nn.Module) -> PromptedCLIP:
        """The host's model around its learner."""
        return PromptedCLIP(learner, clip)

    def checkpointed(self) -> tuple[str, nn.Module]:
        """The folder of the host's checkpoints, and the module that is trained and saved there."""
        return "prompt_learner", self.model.prompt_learner

    def parameter_groups(self, trained: nn.Module) -> list[dict[str, Any]] | None:
        """Groups for the optimiser, where parts of ``trained`` learn at rates of their own."""
        return None

    def build_model(self) -> None:
        cfg = self.cfg
        class_names = self.dm.dataset.classnames
        precision = cfg.TRAINER[self.node].PREC
        clip = load_host_clip(cfg, precision, self.device)
        warn_of_unknown_words(clip, class_names)
        self.model = self.build_prompted_clip(self.build_learner(class_names, clip), clip)
        if cfg.TRAINER.ANCHOROPT.FAST_TEXT:
            for forward in accelerate(self.model):
                forward.chunk = cfg.TRAINER.ANCHOROPT.CLASS_CHUNK
                forward.split = cfg.TRAINER.ANCHOROPT.SPLIT_CLASSES
        if cfg.TRAINER.ANCHOROPT.KEEP_FEATURES:
            keep_image_features(self.model.image_encoder)
        name, trained = self.checkpointed()
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        if cfg.MODEL.INIT_WEIGHTS:
            of_these_classes = {
                key: buffer.clone() for key, buffer in trained.named_buffers() if is_of_classes(key)
            }
            load_pretrained_weights(trained, cfg.MODEL.INIT_WEIGHTS)
            trained.load_state_dict(of_these_classes, strict=False)
        self.model.to(self.device)
        self.optim = build_optimizer(trained, cfg.OPTIM, self.parameter_groups(trained))
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(name, trained, self.optim, self.sched)
        self.amp = precision == "amp" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and the logits (B, C) whose accuracy is printed."""
        output = self.model(image)
        return F.cross_entropy(output, label), output

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, enabled=self.amp):
            loss, output = self.loss(image, label)
        self.detect_anomaly(loss)
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def loadable(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a checkpoint's weights those for the classes at hand."""
        return {key: value for key, value in state.items() if not is_of_classes(key)}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a checkpoint into the classes at hand; ``epoch`` None takes the best, −1 the last.

        Raises:
            UserError: no such checkpoint, or one for another context length, depth or backbone.
        """
        if not directory:
            print("No --model-dir given: the prompt stays as it was initialised")
            return
        for name in self.get_model_names():
            path = _checkpoint(Path(directory, name), epoch)
            if not path.exists():
                raise UserError(f"no checkpoint {path}; {_advice(path.parent)}")
            checkpoint = load_checkpoint(str(path))
            state = checkpoint["state_dict"].items()
            state = self.loadable({key.removeprefix("module."): value for key, value in state})
            model = self._models[name]
            check_fits(state, model, str(path))
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            model.load_state_dict(state, strict=False)


def _checkpoint(folder: Path, epoch: int | None) -> Path:
    if epoch is None:
        return folder / "model-best.pth.tar"
    last = folder / "checkpoint"  # a text file with the last one's name
    if epoch < 0 and last.exists():
        return folder / named_in(folder)
    return folder / f"model.pth.tar-{epoch}"


def _advice(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("model*"))
    if found:
        return f"there are {', '.join(found)}: give --load-epoch"
    return "check --model-dir"


def check_fits(state: dict[str, Tensor], model: nn.Module, origin: str) -> None:
    """Raise a ``UserError`` where the weights to be loaded are not those of this host.

    Keys of modules that ``model`` does not have are let pass: whole-model checkpoints hold CLIP.
    Where AnchorOPT is new the file need not have it, but what was trained with it needs it.
    """
    own = model.state_dict()
    for key, value in state.items():
        if CHILD in key.split(".") and key not in own:
            raise UserError(
                f"{origin} was trained with AnchorOPT, which this trainer is not: give the "
                "--trainer whose name ends in _AnchorOPT"
            )
        if key in own and own[key].shape != value.shape:
            raise UserError(
                f"{origin} does not fit: {key} is {tuple(value.shape)} there and "
                f"{tuple(own[key].shape)} here; it is for another context length or backbone"
            )
    lists = {name for name, part in model.named_modules() if isinstance(part, nn.ParameterList)}
    here = {name for name, _ in model.named_parameters() if CHILD not in name.split(".")}
    there = {key for key in state if key in own or key.rpartition(".")[0] in lists}
    for keys, place in ((here - there, "here"), (there - own.keys(), "there")):
        if keys:
            raise UserError(
                f"{origin} does not fit: {min(keys)} is {place} alone; it is for another "
                "trainer or prompt depth"
            )
