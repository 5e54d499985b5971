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
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

CLASS_BUFFERS = ("token_prefix", "token_suffix")
"""Buffers that depend on the classes at hand: saved, but never loaded."""


def load_host_clip(cfg: Any, precision: str, device: torch.device) -> nn.Module:
    """The plain CLIP of ``MODEL.BACKBONE.NAME`` in the precision that the host asks for.

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
    return to_precision(clip, precision, device)


def warn_of_unknown_words(clip: nn.Module, class_names: Sequence[str]) -> None:
    """Say which words of the class names the backbone was never trained on."""
    words = unknown_words(clip, class_names)
    if words:
        print(
            f"Warning: the backbone never saw {len(words)} word(s) of the class names "
            f"({', '.join(words)}): these mean nothing to it"
        )


class TextEncoder(nn.Module):
    """CLIP's text transformer over prompts that are embedded already.

    (C, 77, d) prompts and (C, 77) tokens → (C, e) features, read at EOT.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.transformer = clip.transformer
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.dtype = clip.dtype

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor) -> Tensor:
        x = prompts + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        eot = tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), eot] @ self.text_projection


class PromptedCLIP(nn.Module):
    """CLIP whose text features come from a prompt learner: images (B, 3, R, R) → logits (B, C)."""

    def __init__(self, prompt_learner: nn.Module, clip: nn.Module) -> None:
        super().__init__()
        self.prompt_learner = prompt_learner
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip.visual
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.dtype = clip.dtype

    def forward(self, image: Tensor) -> Tensor:
        image_features = self.image_encoder(image.type(self.dtype))
        text_features = self.text_encoder(self.prompt_learner(), self.tokenized_prompts)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * image_features @ text_features.t()


def embed_prompts(
    clip: nn.Module, class_names: Sequence[str], context_words: str
) -> tuple[Tensor, Tensor]:
    """Tokens (C, 77) and embeddings (C, 77, d) of ``<context words> <class name>.``"""
    names = [name.replace("_", " ") for name in class_names]
    tokens = tokenize([f"{context_words} {name}." for name in names])
    with torch.no_grad():
        return tokens, clip.token_embedding(tokens).type(clip.dtype)


class PromptTrainer(TrainerX):
    """Trains the prompt learner that ``build_learner`` makes, and nothing else.

    Attributes:
        node: the host's node in ``cfg.TRAINER``.
    """

    node: str

    def check_cfg(self, cfg: Any) -> None:
        precision = cfg.TRAINER[self.node].PREC
        if precision not in ("fp16", "fp32", "amp"):
            raise UserError(f"TRAINER.{self.node}.PREC is {precision!r}: one of fp16, fp32, amp")

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        """The host's prompt learner, for CLIP on the CPU."""
        raise NotImplementedError

    def build_model(self) -> None:
        cfg = self.cfg
        class_names = self.dm.dataset.classnames
        precision = cfg.TRAINER[self.node].PREC
        clip = load_host_clip(cfg, precision, self.device)
        warn_of_unknown_words(clip, class_names)
        self.model = PromptedCLIP(self.build_learner(class_names, clip), clip)
        if cfg.TRAINER.ANCHOROPT.FAST_TEXT:
            accelerate(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        learner = self.model.prompt_learner
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)
        self.amp = precision == "amp" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, enabled=self.amp):
            output = self.model(image)
            loss = F.cross_entropy(output, label)
        self.detect_anomaly(loss)
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a checkpoint into the classes at hand; ``epoch`` None takes the best one.

        Raises:
            UserError: no such checkpoint, or one for another context length or backbone.
        """
        if not directory:
            print("No --model-dir given: the prompt stays as it was initialised")
            return
        file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = Path(directory, name, file)
            if not path.exists():
                raise UserError(f"no checkpoint {path}; {_advice(path.parent)}")
            checkpoint = load_checkpoint(str(path))
            state = {k: v for k, v in checkpoint["state_dict"].items() if k not in CLASS_BUFFERS}
            model = self._models[name]
            check_fits(state, model, str(path))
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            model.load_state_dict(state, strict=False)


def _advice(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("model*"))
    if found:
        return f"there are {', '.join(found)}: give --load-epoch"
    return "check --model-dir"


def check_fits(state: dict[str, Tensor], model: nn.Module, origin: str) -> None:
    """Raise a ``UserError`` where a tensor to be loaded has another shape than the model's."""
    own = model.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise UserError(
                f"{origin} does not fit: {key} is {tuple(value.shape)} there and "
                f"{tuple(own[key].shape)} here; it is for another context length or backbone"
            )
