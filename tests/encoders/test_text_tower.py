"""The packed text tower against CLIP's own 77 tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clip.model import convert_weights
from torch.nn import functional as F

from anchoropt_plugin.encoders.attention import _FromTiles, _ToTiles
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.packing import pack
from anchoropt_plugin.encoders.text_tower import TextTower, common_prefix
from tests.conftest import random_clip

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("n_prefix", [0, 4])
@pytest.mark.parametrize("n_sets", [1, 3])
@pytest.mark.parametrize("n_prompts", [1, 7, 60])
def test_a_packing_holds_every_token_once_and_keeps_prompts_apart(n_prompts, n_sets, n_prefix):
    lengths = torch.randint(1, 12, (n_prompts,)).tolist()
    packing = pack(tuple(n_prefix - 1 + length for length in lengths), n_prefix, n_sets)
    prefix = [(None, at) for at in range(n_prefix)]
    suffixes = [(i, n_prefix + j) for i, length in enumerate(lengths) for j in range(length)]
    n_padding = -(n_prefix + len(suffixes)) % 8
    padding = [(i, n_prefix) for i in range(n_prompts, n_prompts + n_padding)]
    of_set = [*prefix, *suffixes, *padding]  # the prompt and the position of each row
    taken = [*suffixes, *[(0, n_prefix)] * n_padding]
    assert list(zip(packing.prompt.tolist(), packing.position.tolist(), strict=True)) == taken
    assert [of_set[row] for row in packing.eot[:n_prompts]] == [
        (i, n_prefix + length - 1) for i, length in enumerate(lengths)
    ]
    size = packing.rows.shape[1]
    assert len(packing.slots) == n_sets * len(of_set)
    assert size % 8 == len(of_set) % 8 == 0
    # Each row is read in one slot, which holds it, and which attends to what a causal prompt sees.
    assert packing.rows.flatten()[packing.slots].tolist() == list(range(n_sets * len(of_set)))
    for row, slot in enumerate(packing.slots.tolist()):
        assert packing.row_or_zero[slot] == row
        tile, sees = packing.rows[slot // size], packing.mask[slot // size, 0, slot % size] == 0
        prompt, position = of_set[row % len(of_set)]
        want = {(None if at < n_prefix else prompt, at) for at in range(position + 1)}
        assert {of_set[other % len(of_set)] for other in tile[sees].tolist()} == want
        assert {other // len(of_set) for other in tile.tolist()} == {row // len(of_set)}
    assert sorted(set(packing.row_or_zero.tolist()))[-1] <= n_sets * len(of_set)
    # The last block attends for the rows of EOT alone.
    slots = packing.slots[packing.eot]
    assert len(packing.eot) == len(packing.eot_order) == n_sets * n_prompts
    for prompt, order in enumerate(packing.eot_order.tolist()):
        tile, place = divmod(order, packing.eot_slots.shape[1])
        assert packing.eot_slots[tile, place] == prompt and tile == slots[prompt] // size
        want = packing.mask[tile, 0, slots[prompt] % size]
        assert torch.equal(packing.eot_mask[tile, 0, place], want)


def test_rows_come_back_from_tiles_with_their_gradients():
    packing = pack((5, 3, 9, 4), 3, n_sets=2)
    rows = torch.randn(len(packing.slots), 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(packing.rows.numel(), 6, dtype=torch.float64)
    weights = weights * (packing.row_or_zero < len(rows))[:, None]  # padding has no gradient
    want = rows[packing.rows.flatten()]
    got = _ToTiles.apply(rows, packing)
    assert torch.equal(got, want)
    gradients = [torch.autograd.grad((x * weights).sum(), rows)[0] for x in (got, want)]
    torch.testing.assert_close(*gradients)
    slots = torch.randn(packing.rows.numel(), 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(rows)
    both = _FromTiles.apply(slots, packing), slots[packing.slots]
    assert torch.equal(*both)
    gradients = [torch.autograd.grad(x, slots, upstream)[0] for x in both]
    assert torch.equal(*gradients)


_COMPILED = """
import torch
from anchoropt_plugin import TextTower, load_clip, tokenize

tower = TextTower(load_clip("tiny"))
names = "cat", "golden retriever", "dog on a roof"
tokens = tokenize([f"a photo of a {name}." for name in names])
prompts = tower.embed(tokens).requires_grad_()
given = prompts, tokens.argmax(-1).tolist(), 5
compiled = torch.compile(tower.encode, fullgraph=True, backend="aot_eager")
features = [encode(*given) for encode in (tower.encode, compiled)]
torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
upstream = torch.randn_like(features[0])
one, other = (torch.autograd.grad(f, prompts, upstream)[0] for f in features)
assert (one - other).norm() <= 1e-5 * one.norm()
"""


def test_the_tower_compiles_to_one_graph():
    # In a process of its own: a process that has compiled cannot be forked by later tests.
    words = [sys.executable, "-W", "ignore", "-c", _COMPILED]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
