"""CLIP behind a prompt learner: the parts that the models of all hosts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin.encoders.class_names import as_words
from anchoropt_plugin.encoders.clip_models import to_precision, tokenize
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.training.backbone import check_images, load_backbone


def load_host_clip(cfg: Any, precision: str, device: torch.device) -> nn.Module:
    """Return the plain CLIP of ``MODEL.BACKBONE.NAME``, on the CPU, where prompts are embedded.

    Args:
        cfg: the configuration; reads ``MODEL.BACKBONE`` and ``INPUT``.
        precision: "fp32", "fp16" or "amp".
        device: the device of the training to come; a CPU takes fp32 only.

    Raises:
        UserError: an unknown backbone, or images that are prepared otherwise than it needs.
    """
    print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
    clip = load_backbone(cfg)
    check_images(cfg, clip)
    return to_precision(clip, precision, device).cpu()


def run_blocks(transformer: nn.Module, x: Tensor, deep: Sequence[Tensor], first: int) -> Tensor:
    """Run CLIP's transformer over ``x`` (L, N, d) with deep prompts, and return the same shape.

    Before block i = 1, 2, … ``deep[i - 1]`` (n, d) overwrites the n rows from ``first`` on. Without
    deep prompts the result is ``transformer(x)``.
    """
    for index, block in enumerate(transformer.resblocks):
        if 0 < index <= len(deep):
            prompt = deep[index - 1].type(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x[:first], prompt, x[first + len(prompt) :]])
        x = block(x)
    return x


class TextEncoder(nn.Module):
    """CLIP's text transformer over embedded prompts.

    Prompts (…, C, 77, d) and tokens (C, 77) → features (…, C, e), read at EOT. Deep prompts
    ``deep``, each (n, d), overwrite n slots before the text blocks 1, 2, … (MaPLe).

    Attributes:
        deep_start: the first slot that deep prompts overwrite; slot 0 follows SOS.
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
    """CLIP with text features from a prompt learner: images (B, 3, R, R) → logits (B, C).

    Args:
        prompt_learner: the module of ``PromptTrainer.build_learner``.
        clip: the plain CLIP.
        image_encoder: a replacement of CLIP's own image encoder.
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
        """Return features of the images (B, e) and of the prompts (C, e), not normalised."""
        image_features = self.image_encoder(image.type(self.dtype))
        return image_features, self.text_encoder(self.prompt_learner(), self.tokenized_prompts)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(*self.features(image))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return scaled cosines (B, C) of image features (B, e) and text features.

        Text features are (C, e), or (B, C, e) where each image has its own prompts.
        """
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        columns = text_features.transpose(-2, -1)  # ONNX does not know mT
        return (self.logit_scale.exp() * image_features[:, None] @ columns)[:, 0]


def embed_prompts(
    clip: nn.Module, class_names: Sequence[str], context_words: str
) -> tuple[Tensor, Tensor]:
    """Return tokens (C, 77) and embeddings (C, 77, d) of ``<context words> <class name>.``"""
    names = [as_words(name) for name in class_names]
    try:
        tokens = tokenize([f"{context_words} {name}." for name in names])
    except UserError as error:
        raise UserError(
            f"{error} (a prompt: CTX_INIT, or N_CTX times X, then a class name)"
        ) from error
    with torch.no_grad():
        return tokens, clip.token_embedding(tokens).type(clip.dtype)


def initial_context(clip: nn.Module, words: str, n_ctx: int, *sets: int) -> tuple[str, Tensor]:
    """Return the words of an initial context, and the context.

    Args:
        clip: the plain CLIP, on the CPU.
        words: the initial words, ``_`` for a blank; each of their tokens becomes a soft token.
            "" draws the context from N(0, 0.02²).
        n_ctx: the number M of soft tokens of a drawn context.
        sets: the leading dimensions of a drawn context.

    Returns:
        The given words and their embeddings (M, d), or "X X …" and a drawn context (*sets, M, d).

    Raises:
        UserError: the words are a template: they have braces.
    """
    if words:
        if {"{", "}"} & {*words}:
            raise UserError(
                f"CTX_INIT is {words!r}, but holds only the words before the class name: leave out "
                "the braces and what follows"
            )
        words = as_words(words)
        tokens = tokenize([words])
        with torch.no_grad():
            ctx = clip.token_embedding(tokens)[0, 1 : int(tokens.argmax())].type(clip.dtype)
        return words, ctx.clone()
    shape = (*sets, n_ctx, clip.ln_final.weight.shape[0])
    ctx = nn.init.normal_(torch.empty(shape, dtype=clip.dtype), std=0.02)
    return " ".join(["X"] * n_ctx), ctx


class ContextLearner(nn.Module):
    """Soft tokens before the class names: the base of all hosts' prompt learners.

    Args:
        clip: the plain CLIP, on the CPU.
        class_names: the names of C classes.
        words: the words in the slots of the soft tokens.
        ctx: the initial soft tokens, (M, d) or (C, M, d).

    Attributes:
        tokenized_prompts: (C, 77) tokens of ``<words> <class name>.``
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
        """Set ``tokenized_prompts`` and the embeddings before and after ``n_slots`` context slots.

        Returns:
            The embeddings (C, n_slots, d) of the words in the slots.
        """
        self.tokenized_prompts, embedding = embed_prompts(clip, class_names, words)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_slots :])
        return embedding[:, 1 : 1 + n_slots]

    def context(self, ctx: Tensor) -> Sequence[Tensor]:
        """Return the parts (…, n, d) that fill the context slots, in order."""
        return (ctx,)

    def prompts(self, ctx: Tensor) -> Tensor:
        """Return ``[SOS] ctx [class name] . [EOT]`` as prompts (…, C, 77, d).

        ``ctx`` is (M, d), (C, M, d) or (B, 1, M, d).
        """
        parts = self.token_prefix, *self.context(ctx), self.token_suffix
        sets = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
        return torch.cat([part.expand(*sets, -1, -1) for part in parts], -2)
