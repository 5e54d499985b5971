"""The exact fast text branch: CLIP's text features from only the tokens that matter.

CLIP's text transformer is causal, so tokens after EOT change nothing, and the hidden states of a
prefix that all prompts share are the same for all of them. So each prompt is cut at its EOT, a
shared prefix is computed once, and the remaining tokens of all prompts are packed into one matrix
(``packing``). The last block computes only the rows of EOT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend, attend_eot, eot_rows
from .clip_models import tokenize
from .frozen_linear import frozen_linear
from .huggingface_text import HuggingFaceText, is_huggingface
from .packing import Packing, pack

Rewrite = Callable[[int, Tensor], Tensor]


def common_prefix(tokens: Tensor) -> int:
    """Return how many leading tokens all rows of ``tokens`` (n, L) share, at most up to EOT.

    >>> common_prefix(torch.tensor([[7, 3, 5, 9], [7, 3, 6, 9]]))
    2
    """
    same = (tokens == tokens[:1]).all(0)
    first_eot = int(tokens.argmax(-1).min())
    return int(same[:first_eot].long().cumprod(0).sum())


def blocks_of(encoder: Any) -> Any:
    """Return the residual blocks of a text encoder.

    They are in ``encoder.transformer``; hosts that run the blocks one by one store only the blocks
    under this name. Those of transformers are in ``encoder.text_model``.

    >>> from anchoropt_plugin import load_clip
    >>> clip = load_clip("tiny")
    >>> encoder = nn.Module()
    >>> encoder.transformer = clip.transformer.resblocks
    >>> blocks_of(encoder) is blocks_of(clip)
    True
    """
    if is_huggingface(encoder):
        return encoder.text_model.encoder.layers
    return getattr(encoder.transformer, "resblocks", encoder.transformer)


class TextTower:
    """CLIP's text transformer, read from the model and run over packed tokens.

    The tower owns no weights, it refers to those of ``clip``: moving or converting the model also
    moves the tower. The token embedding may be on another device than the rest. It reads the
    weights that CLIP has: what adapters, hooks or prompts within the transformer add, it leaves
    out.

    Args:
        clip: a model with OpenAI's names: ``token_embedding``, ``positional_embedding``,
            ``transformer`` as ``blocks_of`` reads it, ``ln_final``, ``text_projection``; or with
            ``text_model`` and ``text_projection`` of transformers.

    >>> from anchoropt_plugin import load_clip
    >>> clip = load_clip("tiny")
    >>> tokens = tokenize(["a photo of a circle.", "a photo of a red star."])
    >>> fast = TextTower(clip).encode_tokens(tokens)
    >>> torch.allclose(fast, clip.encode_text(tokens), atol=1e-5)
    True
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = HuggingFaceText(clip) if is_huggingface(clip) else clip

    @classmethod
    def of(cls, model: TextTower | nn.Module) -> TextTower:
        """Return ``model`` if it is a text tower, else the text tower of this CLIP."""
        return model if isinstance(model, TextTower) else cls(model)

    @property
    def device(self) -> torch.device:
        """The device on which prompts are encoded."""
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
        """Return a number that changes when the weights do, by loading or training them."""
        clip = self.clip
        parts = [clip.ln_final]
        for block in blocks_of(clip):
            parts += [block.ln_1, block.attn, block.ln_2, block.mlp]
        weights = [weight for part in parts for weight in part.parameters()]
        return sum(w._version for w in [*weights, clip.positional_embedding, clip.text_projection])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return token embeddings (n, L, d) of ``tokens`` (n, L) on ``device``, in ``dtype``."""
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
        """Return text features (…, n, e) of embedded prompts, not normalised.

        Args:
            prompts: (…, n, L, d), without positions; L may be anything beyond the last EOT. Leading
                dimensions hold sets of n prompts with the same tokens, such as one set an image.
            eot: n positions of EOT, where the feature is read.
            n_shared: number of leading tokens that all prompts of a set share; they are taken from
                the first prompt and computed once a set. It must not exceed any ``eot``.
            rest_is_constant: the tokens behind the shared ones need no gradient, for example class
                names; this saves memory.
            rewrite: called before each block but the first with the block's number and the hidden
                states of the prefix (sets, n_shared, d); returns the states that replace them, as
                deep prompts do.
        """
        sets = prompts.flatten(0, -4) if prompts.dim() > 3 else prompts[None]
        device = prompts.device
        dtype = self.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        packing = pack(tuple(eot), n_shared, len(sets), dtype, device)
        positions = self.clip.positional_embedding.to(prompts.dtype)
        prefix = sets[:, 0, :n_shared] + positions[:n_shared]
        rest = sets.detach() if rest_is_constant else sets
        suffix = rest[:, packing.prompt, packing.position] + positions[packing.position]
        x = torch.cat([prefix, suffix], 1).flatten(0, 1)
        *blocks, last = blocks_of(self.clip)
        for number, block in enumerate(blocks):
            if number:
                x = _rewritten(rewrite, number, x, packing)
            x = x + attend(block.attn, block.ln_1(x), packing)
            x = x + _mlp(block.mlp, block.ln_2(x))
        x = _rewritten(rewrite, len(blocks), x, packing) if blocks else x
        x = eot_rows(x, packing) + attend_eot(last.attn, last.ln_1(x), packing)
        x = x + _mlp(last.mlp, last.ln_2(x))
        x = self.clip.ln_final(x).to(self.dtype) @ self.clip.text_projection
        return x.view(*prompts.shape[:-2], -1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return text features (n, e) of ``tokens`` (n, L) of ``tokenize``, not normalised."""
        eot = tokens.argmax(-1).tolist()
        cut = tokens[:, : max(eot) + 1]
        return self.encode(self.embed(cut), eot, common_prefix(tokens))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch: int = 512) -> Tensor:
        """Return L2-normalised text features (n, e) of sentences in float32, without a graph."""
        parts = [
            self.encode_tokens(tokenize(texts[start : start + batch]))
            for start in range(0, len(texts), batch)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)


class _QuickGELU(torch.autograd.Function):
    """y · sigmoid(1.702 y) as silu(1.702 y) / 1.702, whose derivative is silu's at 1.702 y.

    ``y`` is overwritten: no backward pass of a linear map needs its output. One hidden activation
    is saved, where the usual form saves two.
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
    activation = _ACTIVATIONS.get(type(mlp.gelu).__name__)
    if activation is None:
        return mlp(x)
    hidden = activation(mlp.gelu, frozen_linear(x, mlp.c_fc.weight, mlp.c_fc.bias))
    return frozen_linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias)


def _quick_gelu(module: nn.Module, x: Tensor) -> Tensor:
    return _QuickGELU.apply(x)


_ACTIVATIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "QuickGELU": _quick_gelu,
    "QuickGELUActivation": _quick_gelu,  # of transformers
    "GELU": nn.Module.__call__,
    "GELUActivation": nn.Module.__call__,
}


def _rewritten(rewrite: Rewrite | None, number: int, x: Tensor, packing: Packing) -> Tensor:
    """Rows (N · R, d) before block ``number``, their prefixes replaced by ``rewrite``."""
    if rewrite is None:
        return x
    sets = x.unflatten(0, (packing.n_sets, -1))
    prefix = rewrite(number, sets[:, : packing.n_prefix])
    return torch.cat([prefix, sets[:, packing.n_prefix :]], 1).flatten(0, 1)
