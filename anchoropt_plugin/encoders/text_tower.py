"""The exact fast text branch: CLIP's text features from only the tokens that matter.

CLIP's text transformer is causal, so what stands after EOT changes nothing, and the hidden states
of a prefix that all prompts share are the same for all of them. A prompt is therefore cut at its
EOT, a shared prefix is computed once, and the remaining tokens of all prompts are packed into one
matrix (``packing``). In the last block only the rows of EOT are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend, eot_rows
from .clip_models import tokenize
from .frozen_linear import frozen_linear
from .packing import Packing, pack

Rewrite = Callable[[int, Tensor], Tensor]


def common_prefix(tokens: Tensor) -> int:
    """How many leading tokens all rows of ``tokens`` (n, L) share, at most up to the first EOT.

    >>> common_prefix(torch.tensor([[7, 3, 5, 9], [7, 3, 6, 9]]))
    2
    """
    same = (tokens == tokens[:1]).all(0)
    first_eot = int(tokens.argmax(-1).min())
    return int(same[:first_eot].long().cumprod(0).sum())


def blocks_of(encoder: Any) -> Any:
    """The residual blocks of a text encoder: of its ``transformer``, or that itself.

    Hosts that run the blocks one by one keep them alone under that name.

    >>> from anchoropt_plugin import load_clip
    >>> clip = load_clip("tiny")
    >>> encoder = nn.Module()
    >>> encoder.transformer = clip.transformer.resblocks
    >>> blocks_of(encoder) is blocks_of(clip)
    True
    """
    return getattr(encoder.transformer, "resblocks", encoder.transformer)


class TextTower:
    """CLIP's text transformer, read from the model and run over packed tokens.

    It owns no weights: it refers to those of ``clip``, so moving or converting the model moves
    this with it. The token embedding may stay on another device than the rest.

    Args:
        clip: a model with OpenAI's names: ``token_embedding``, ``positional_embedding``,
            ``transformer`` as ``blocks_of`` reads it, ``ln_final``, ``text_projection``.

    >>> from anchoropt_plugin import load_clip
    >>> clip = load_clip("tiny")
    >>> tokens = tokenize(["a photo of a circle.", "a photo of a red star."])
    >>> fast = TextTower(clip).encode_tokens(tokens)
    >>> torch.allclose(fast, clip.encode_text(tokens), atol=1e-5)
    True
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip

    @property
    def device(self) -> torch.device:
        """Where prompts are encoded."""
        return self.clip.positional_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer's weights."""
        return blocks_of(self.clip)[0].mlp.c_fc.weight.dtype

    @property
    def dim(self) -> int:
        """The width d of a token."""
        return self.clip.positional_embedding.shape[1]

    def version(self) -> int:
        """Counts the changes of the weights that are read: loading or training them."""
        clip = self.clip
        parts = [clip.ln_final]
        for block in blocks_of(clip):
            parts += [block.ln_1, block.attn, block.ln_2, block.mlp]
        weights = [weight for part in parts for weight in part.parameters()]
        return sum(w._version for w in [*weights, clip.positional_embedding, clip.text_projection])

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (n, L, d) of ``tokens`` (n, L), on ``device`` and of ``dtype``."""
        table = self.clip.token_embedding
        with torch.no_grad():
            return table(tokens.to(table.weight.device)).to(self.device, self.dtype)

    def encode(
        self,
        prompts: Tensor,
        eot: Sequence[int],
        n_shared: int = 0,
        rest_is_constant: bool = False,
        rewrite: Rewrite | None = None,
    ) -> Tensor:
        """Text features (…, n, e) of prompts given as token embeddings, not normalised.

        Args:
            prompts: (…, n, L, d), without positions; L may be anything beyond the last EOT. Leading
                dimensions hold sets of n prompts with the same tokens, as one set an image.
            eot: n positions of EOT; the feature is read there.
            n_shared: so many leading tokens are the same in all prompts of a set; they are taken
                from the first and computed once a set. It must not exceed any ``eot``.
            rest_is_constant: no gradient is wanted for the tokens behind the shared ones, as where
                these are class names; that saves memory.
            rewrite: called before each block but the first with the block's number and the hidden
                states of the prefix (sets, n_shared, d); returns those that take their place, as
                deep prompts do.
        """
        sets = prompts.flatten(0, -4) if prompts.dim() > 3 else prompts[None]
        packing = pack(tuple(eot), n_shared, prompts.device)
        positions = self.clip.positional_embedding.to(prompts.dtype)
        prefix = sets[:, 0, :n_shared] + positions[:n_shared]
        rest = sets.detach() if rest_is_constant else sets
        suffix = rest[:, packing.prompt, packing.position] + positions[packing.position]
        x = torch.cat([prefix.flatten(0, 1), suffix.flatten(0, 1)])
        blocks = blocks_of(self.clip)
        n_prefix_rows = len(sets) * n_shared
        for number, block in enumerate(blocks):
            if rewrite is not None and number:
                prefix = x[:n_prefix_rows].unflatten(0, (len(sets), n_shared))
                x = torch.cat([rewrite(number, prefix).flatten(0, 1), x[n_prefix_rows:]])
            x = _block(block, x, packing, len(sets), only_eot=number == len(blocks) - 1)
        x = self.clip.ln_final(x).to(self.dtype) @ self.clip.text_projection
        return x.view(*prompts.shape[:-2], -1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Text features (n, e) of ``tokens`` (n, L) as ``tokenize`` gives them, not normalised."""
        eot = tokens.argmax(-1).tolist()
        cut = tokens[:, : max(eot) + 1]
        return self.encode(self.embed(cut), eot, common_prefix(tokens))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch: int = 512) -> Tensor:
        """L2-normalised text features (n, e) of sentences, in float32, without a graph."""
        parts = [
            self.encode_tokens(tokenize(texts[start : start + batch]))
            for start in range(0, len(texts), batch)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)


class _QuickGELU(torch.autograd.Function):
    """y · sigmoid(1.702 y) as silu(1.702 y) / 1.702, whose derivative is silu's at 1.702 y.

    ``y`` is written over: no backward pass of a linear map needs what it returned. One hidden
    activation is kept, where the usual form keeps two.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        scaled = y.mul_(1.702)
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        out: Tensor = torch.ops.aten.silu_backward(grad, scaled)
        return out


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """CLIP's MLP."""
    # By name: public repositories carry copies of CLIP, each with a class of its own.
    if type(mlp.gelu).__name__ != "QuickGELU":
        return mlp(x)
    hidden = _QuickGELU.apply(frozen_linear(x, mlp.c_fc.weight, mlp.c_fc.bias))
    return frozen_linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias)


def _block(block: Any, x: Tensor, packing: Packing, n_sets: int, only_eot: bool) -> Tensor:
    """One residual block over rows as ``attend`` takes them, returning what that returns."""
    mixed = attend(block.attn, block.ln_1(x), packing, n_sets, only_eot)
    x = (eot_rows(x, packing, n_sets) if only_eot else x) + mixed
    return x + _mlp(block.mlp, block.ln_2(x))
