"""The text tower of a ``transformers.CLIPModel``, under OpenAI's names."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


def is_huggingface(module: Any) -> bool:
    """Whether ``module`` holds a text tower of transformers as ``text_model``."""
    text = getattr(module, "text_model", None)
    return hasattr(text, "embeddings") and hasattr(text, "encoder")


class HuggingFaceText(nn.Module):
    """A view of a text tower of transformers: OpenAI's names, the weights of the model.

    Args:
        clip: a ``CLIPModel``, or a module with its ``text_model`` and ``text_projection``.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        text = clip.text_model
        self.token_embedding = text.embeddings.token_embedding
        self.transformer = nn.ModuleList(map(_Block, text.encoder.layers))
        self.ln_final = text.final_layer_norm
        self._positions, self._projection = text.embeddings.position_embedding, clip.text_projection
        if isinstance(getattr(clip, "logit_scale", None), nn.Parameter):
            self.logit_scale = clip.logit_scale

    @property
    def positional_embedding(self) -> Tensor:
        """(77, d)."""
        return self._positions.weight

    @property
    def text_projection(self) -> Tensor:
        """(d, e)."""
        return self._projection.weight.t()


class _Block(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = layer.layer_norm1, layer.layer_norm2
        self.attn = _Attention(layer.self_attn)
        mlp = layer.mlp
        parts: list[tuple[str, nn.Module]] = [("c_fc", mlp.fc1), ("gelu", mlp.activation_fn)]
        self.mlp = nn.Sequential(OrderedDict([*parts, ("c_proj", mlp.fc2)]))


class _Attention(nn.Module):
    """The three projections of an attention as one."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.three: Any = nn.ModuleList([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out_proj = attention.out_proj

    @property
    def in_proj_weight(self) -> Tensor:
        """(3 d, d), copied at each use: so the weights may be moved, loaded or trained."""
        return torch.cat([part.weight for part in self.three])

    @property
    def in_proj_bias(self) -> Tensor:
        """(3 d,)."""
        return torch.cat([part.bias for part in self.three])
