"""The packed text tower against CLIP's own 77 tokens."""

from __future__ import annotations

import pytest
import torch
from clip.model import convert_weights
from torch.nn import functional as F

from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.packing import pack
from anchoropt_plugin.encoders.text_tower import TextTower, common_prefix
from tests.conftest import random_clip

NAMES = {
    "mixed lengths": ["cat", "golden retriever", "grand piano player on a roof", "dog", "a b c d"],
    "one class": ["golden retriever"],
    "repeated names": ["cat", "cat", "dog", "cat"],
    "to the limit": ["cat", " ".join(["cat"] * 68)],
}


def plain(clip, prompts, tokens):
    """The usual branch: all 77 positions of all classes."""
    x = (prompts + clip.positional_embedding.type(clip.dtype)).permute(1, 0, 2)
    x = clip.ln_final(clip.transformer(x).permute(1, 0, 2))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("n_ctx", [1, 5])
def test_features_and_context_gradient_equal_the_plain_branch(clip, names, n_ctx):
    words = " ".join(["X"] * n_ctx)
    tokens = tokenize([f"{words} {name}." for name in names])
    tower = TextTower(clip)
    embedded = tower.embed(tokens)
    ctx = torch.randn(n_ctx, tower.dim) * 0.02
    upstream = torch.randn(len(names), 32)
    results = []
    for encode in (
        lambda prompts: plain(clip, prompts, tokens),
        lambda prompts: tower.encode(prompts, tokens.argmax(-1).tolist(), 1 + n_ctx),
        lambda prompts: tower.encode(prompts, tokens.argmax(-1).tolist(), 0),
    ):
        leaf = ctx.clone().requires_grad_()
        context = leaf.expand(len(names), -1, -1)
        features = encode(torch.cat([embedded[:, :1], context, embedded[:, 1 + n_ctx :]], 1))
        (features * upstream).sum().backward()
        results.append((features.detach(), leaf.grad))
    for features, gradient in results[1:]:
        for got, want in ((features, results[0][0]), (gradient, results[0][1])):
            assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype):
    tokens = tokenize([f"a photo of a {name}." for name in NAMES["mixed lengths"]])
    full = TextTower(random_clip()).encode_tokens(tokens)
    clip = random_clip()
    convert_weights(clip)  # CLIP's own choice of which weights are half
    for parameter in clip.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(dtype)
    half = TextTower(clip).encode_tokens(tokens)
    assert half.dtype == dtype
    cosine = F.cosine_similarity(half.float(), full, dim=-1)
    assert cosine.min() > 0.999


def test_tokens_without_anything_in_common_are_encoded_too(clip):
    tokens = tokenize(["cat", "dog on a roof"])[:, 1:]
    assert common_prefix(tokens) == 0
    tower = TextTower(clip)
    features = tower.encode_tokens(tokens)
    padded = F.pad(tower.embed(tokens), (0, 0, 0, 1))
    torch.testing.assert_close(features, plain(clip, padded, tokens), rtol=1e-4, atol=1e-5)


def test_texts_are_encoded_in_batches_normalised_and_without_a_graph(clip):
    texts = [f"a photo of a {name}." for name in NAMES["mixed lengths"]]
    together, apart = TextTower(clip).encode_texts(texts), TextTower(clip).encode_texts(texts, 2)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(texts)))
    reference = clip.encode_text(tokenize(texts))
    torch.testing.assert_close(together, F.normalize(reference, dim=-1), rtol=1e-4, atol=1e-5)
    assert not together.requires_grad


def test_a_prefix_for_each_image_all_images_at_once(clip):
    """As CoCoOp's: the context differs from image to image and is shared by the classes."""
    tokens = tokenize([f"X X X X {name}." for name in NAMES["mixed lengths"]])
    tower = TextTower(clip)
    embedded = tower.embed(tokens)
    ctx = (torch.randn(3, 1, 4, 64) * 0.02).requires_grad_()
    rows = embedded.expand(3, -1, -1, -1)
    prompts = torch.cat([rows[:, :, :1], ctx.expand(-1, 5, -1, -1), rows[:, :, 5:]], 2)
    together = tower.encode(prompts, tokens.argmax(-1).tolist(), 5)
    one_by_one = torch.stack([plain(clip, set_, tokens) for set_ in prompts])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(together)
    gradients = [
        torch.autograd.grad(f, ctx, upstream, retain_graph=True)[0] for f in (together, one_by_one)
    ]
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


@pytest.mark.parametrize("n_prompts", [1, 7, 60])
def test_a_packing_holds_every_token_once_and_keeps_prompts_apart(n_prompts):
    lengths = torch.randint(1, 12, (n_prompts,)).tolist()
    packing = pack(tuple(3 + length for length in lengths), 4, torch.device("cpu"))
    rows = list(zip(packing.prompt.tolist(), packing.position.tolist(), strict=True))
    tokens = [(i, 4 + j) for i, length in enumerate(lengths) for j in range(length)]
    assert sorted(row for row in rows if row[1] >= 4) == tokens
    assert [rows[row] for row in packing.eot] == [(i, 3 + n) for i, n in enumerate(lengths)]
    n_tiles, _, size, _ = packing.mask.shape
    for row, (prompt, position) in enumerate(rows):
        tile = rows[row // size * size :][:size]
        seen = packing.mask[row // size, 0, row % size]
        assert seen[:4].all()
        if position >= 4:
            own = [(p, at) for (p, at), sees in zip(tile, seen[4:], strict=True) if sees]
            assert own == [(prompt, at) for at in range(4, position + 1)]
    assert len(packing.prompt) == n_tiles * size <= 1.5 * sum(lengths)
