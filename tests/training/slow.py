"""CLIP, AnchorOPT's objective and its rule at test in float64, written out: no code of the project.

Prompts have all 77 tokens, and every prompt is encoded alone.
"""

from __future__ import annotations

import math

import torch


def norm(x, s, name):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * s[f"{name}.weight"] + s[f"{name}.bias"]


def linear(x, s, name):
    return x @ s[f"{name}weight"].t() + s[f"{name}bias"]


def softmax(x):
    exp = (x - x.max(-1, keepdim=True).values).exp()
    return exp / exp.sum(-1, keepdim=True)


def log_softmax(x):
    return softmax(x).log()


def block(x, s, name, heads, is_causal):
    """One residual block on hidden states x (L, d)."""
    q, k, v = linear(norm(x, s, f"{name}.ln_1"), s, f"{name}.attn.in_proj_").chunk(3, -1)
    outs = []
    for q_, k_, v_ in zip(*(y.chunk(heads, -1) for y in (q, k, v)), strict=True):
        scores = q_ @ k_.t() / math.sqrt(q_.shape[-1])
        if is_causal:
            later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        outs.append(softmax(scores) @ v_)
    x = x + linear(torch.cat(outs, -1), s, f"{name}.attn.out_proj.")
    hidden = linear(norm(x, s, f"{name}.ln_2"), s, f"{name}.mlp.c_fc.")
    return x + linear(hidden / (1 + (-1.702 * hidden).exp()), s, f"{name}.mlp.c_proj.")


def depth(s, name):
    return len(
        {key.split(".resblocks.")[1].split(".")[0] for key in s if f"{name}.resblocks." in key}
    )


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def image_feature(image, s, heads, prompts=None, deep=()):
    """Feature (e,) of an image (3, R, R); prompts follow the patches, deep ones replace them."""
    kernel = s["visual.conv1.weight"]
    side = kernel.shape[-1]
    patches = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4)
    x = patches.flatten(2).flatten(0, 1) @ kernel.flatten(1).t()
    x = torch.cat([s["visual.class_embedding"][None], x]) + s["visual.positional_embedding"]
    n = len(x)
    if prompts is not None:
        x = torch.cat([x, prompts])
    x = norm(x, s, "visual.ln_pre")
    for i in range(depth(s, "visual.transformer")):
        if 0 < i <= len(deep):
            x = torch.cat([x[:n], deep[i - 1]])
        x = block(x, s, f"visual.transformer.resblocks.{i}", heads, False)
    return norm(x[0], s, "visual.ln_post") @ s["visual.proj"]


def text_feature(prompt, eot, s, heads, rewrite=lambda i, x: x):
    """The feature (e,) of an embedded prompt (77, d), read at ``eot``."""
    text = {key: value for key, value in s.items() if not key.startswith("visual.")}
    x = prompt + s["positional_embedding"]
    for i in range(depth(text, "transformer")):
        x = block(rewrite(i, x), s, f"transformer.resblocks.{i}", heads, True)
    return norm(x[eot], s, "ln_final") @ s["text_projection"]


def anchor_feature(anchors, name, tokenize, s, heads):
    """The feature (e,) of the prompt ``[A] of {name}.``"""
    tokens = tokenize(f"{'X ' * len(anchors)}of {name}.")[0]
    embedded = s["token_embedding.weight"][tokens]
    prompt = torch.cat([embedded[:1], anchors, embedded[1 + len(anchors) :]])
    return text_feature(prompt, int(tokens.argmax()), s, heads)


def logits(images, texts, scale):
    """Scaled cosines of features (B, e) and (C, e)."""
    return scale.exp() * unit(images) @ unit(texts).t()


def cross_entropy(l_n, targets):
    """The cross-entropy of each image."""
    return -torch.stack([log_softmax(row)[y] for row, y in zip(l_n, targets.tolist(), strict=True)])


def objective(l_n, l_a, targets, ce, kd, temperature):
    """AnchorOPT's objective of each image; its mean is that of the batch."""
    teacher = ((l_n + l_a) / 2).detach() / temperature
    divergence = softmax(teacher) * (log_softmax(teacher) - log_softmax(l_n / temperature))
    distillation = temperature**2 * divergence.sum(-1) / l_n.shape[-1]
    return ce * cross_entropy(l_n, targets) + kd * distillation


def arranged(prefix, context, anchors, matrix, suffix):
    """A prompt (77, d) with the context P · [context; anchors]."""
    slots = matrix @ torch.cat([context, anchors])
    return torch.cat([prefix, slots, suffix[: len(suffix) - len(anchors)]])
