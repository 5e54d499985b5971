"""Deep prompts with anchors: the fast branch and the host's blocks against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anchoropt_plugin import AnchorPositionModule, PromptHook, accelerate
from anchoropt_plugin.encoders.accelerate import install
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.deep_prompts import OWN_SLOTS, Survivors, arranged
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.prompts.anchored_encoder import AnchoredEncoder
from anchoropt_plugin.prompts.attachment import Attachment
from anchoropt_plugin.prompts.eot import MovedTokens
from tests.conftest import random_clip

NAMES = ["cat", "golden retriever", "grand piano player on a roof"]
M, K, DEPTH = 3, 2, 4


def anchored(position, end=None, survivors=OWN_SLOTS):
    """Prompts that ``position`` arranges; without it the host's own."""
    moved = None if end is None else MovedTokens(tokenize(NAMES), end)
    attachment = position and Attachment(position, PromptHook(), moved)
    return AnchoredEncoder(attachment, survivors)


def deep_clip():
    """Five text blocks, so that some come after the prompted ones."""
    from clip.model import CLIP

    torch.manual_seed(0)
    return CLIP(32, 32, 1, 64, 8, 77, 49408, 64, 4, 5).float().eval().requires_grad_(False)


class DeepEncoder(nn.Module):
    """Overwrites slots 1 … M before blocks 1, 2, …, as MaPLe does, over the stock blocks."""

    def __init__(self, clip):
        super().__init__()
        self.transformer, self.ln_final = clip.transformer, clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.text_projection = clip.text_projection

    def forward(self, prompts, tokens, deep=()):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(self.transformer.resblocks):
            if 0 < number <= len(deep):
                middle = deep[number - 1][:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], middle, x[1 + len(middle) :]])
            x = block(x)
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class ForkedTransformer(nn.Module):
    """As in MaPLe's fork: blocks pass on [x, deep prompts, counter] and overwrite in it."""

    class Block(nn.Module):
        def __init__(self, plain, first):
            super().__init__()
            self.attn, self.ln_1 = plain.attn, plain.ln_1
            self.mlp, self.ln_2 = plain.mlp, plain.ln_2
            self.attention, self.first = plain.attention, first

        def forward(self, inputs):
            x, deep, counter = inputs
            if not self.first and counter < len(deep):
                middle = deep[counter][:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], middle, x[1 + len(middle) :]])
                counter += 1
            x = x + self.attention(self.ln_1(x))
            return [x + self.mlp(self.ln_2(x)), deep, counter]

    def __init__(self, transformer):
        super().__init__()
        blocks = [self.Block(b, i == 0) for i, b in enumerate(transformer.resblocks)]
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, inputs):
        return self.resblocks(inputs)


class ForkedEncoder(DeepEncoder):
    def __init__(self, clip):
        super().__init__(clip)
        self.transformer = ForkedTransformer(clip.transformer)

    def forward(self, prompts, tokens, deep=()):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        x = self.transformer([x, deep, 0])[0]
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class OwnPromptsEncoder(DeepEncoder):
    """As in IVLP's fork: the blocks hold the deep prompts themselves, and round them to half."""

    class Block(nn.Module):
        def __init__(self, plain, prompt, first):
            super().__init__()
            self.attn, self.ln_1, self.attention = plain.attn, plain.ln_1, plain.attention
            self.mlp, self.ln_2, self.first = plain.mlp, plain.ln_2, first
            self.prompt = prompt

        def forward(self, x):
            if self.prompt is not None:
                middle = self.prompt.half()[:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[: self.first], middle, x[self.first + len(middle) :]])
            x = x + self.attention(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    def __init__(self, clip, deep, first=1):
        super().__init__(clip)
        prompts = [None, *(nn.Parameter(p.detach().clone()) for p in deep), None]
        blocks = zip(clip.transformer.resblocks, prompts, strict=True)
        self.transformer = nn.Sequential()
        self.transformer.resblocks = nn.Sequential(
            *(self.Block(block, prompt, first) for block, prompt in blocks)
        )

    def forward(self, prompts, tokens):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer.resblocks(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


def plain_features(clip, prompts, tokens, deep, position, first=0, early=0):
    """Class by class; the anchor's state is carried over by hand where ``position`` puts it.

    The deep prompts stand for the soft tokens from ``first`` on; the others keep their states.
    """
    order = position.matrix().argmax(-1).tolist() if position else list(range(M))
    features = []
    for prompt, eot in zip(prompts, tokens.argmax(-1), strict=True):
        x = prompt + clip.positional_embedding
        for number, block in enumerate(clip.transformer.resblocks):
            if 0 < number <= len(deep):
                slots = []
                for token in order:
                    prompted = first <= token < first + len(deep[number - 1])
                    own = x[1 + order.index(token) - early]
                    slots.append(deep[number - 1][token - first] if prompted else own)
                x = torch.cat([x[:1], torch.stack(slots), x[1 + len(slots) :]])
            x = block(x[:, None])[:, 0]
        features.append(clip.ln_final(x[eot]) @ clip.text_projection)
    return torch.stack(features)


def parts(clip, n_context):
    words = " ".join(["X"] * n_context)
    tokens = tokenize([f"{words} {name}." for name in NAMES])
    context = (0.1 * torch.randn(n_context, 64)).requires_grad_()
    deep = [(0.1 * torch.randn(M, 64)).requires_grad_() for _ in range(DEPTH - 1)]
    embedded = clip.token_embedding(tokens)

    def prompts():
        rows = context.expand(len(NAMES), -1, -1)
        return torch.cat([embedded[:, :1], rows, embedded[:, 1 + n_context :]], 1)

    return tokens, prompts, [context, *deep], deep


def position_module():
    torch.manual_seed(3)
    position = AnchorPositionModule(M, torch.randn(K, 64), relaxation="sinkhorn", init=0)
    while sorted(position.draw().argmax(-1).tolist()[-K:]) == [M, M + 1]:
        pass  # until an anchor has left its place
    return position


@pytest.mark.parametrize("encoder_type", [DeepEncoder, ForkedEncoder])
@pytest.mark.parametrize("with_anchors", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_every_way_gives_the_features_and_gradients_of_the_plain_loop(
    encoder_type, with_anchors, fast
):
    clip = deep_clip()
    position = position_module() if with_anchors else None
    tokens, prompts, leaves, deep = parts(clip, M + K if with_anchors else M)
    upstream = torch.randn(len(NAMES), 32)
    want = plain_features(clip, prompts(), tokens, deep, position)
    encoder = encoder_type(clip)
    forward = install(encoder, prompts=anchored(position), in_use=fast)
    got = encoder(prompts(), tokens, deep)
    assert forward.in_use == fast
    assert (got - want).norm() <= 1e-5 * want.norm()
    gradients = [torch.autograd.grad(f, leaves, upstream) for f in (got, want)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()
    for block in encoder.transformer.resblocks:
        assert not block._forward_hooks and not block.ln_1._forward_pre_hooks
        assert "forward" not in vars(block)


@pytest.mark.parametrize("with_anchors", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_prompts_that_the_blocks_hold_and_those_behind_attribute_words(with_anchors, fast, first):
    """With ``first`` 1 the first token of the context is an attribute word, never written over."""
    clip = deep_clip()
    position = position_module() if with_anchors else None
    tokens, prompts, (context, *_), deep = parts(clip, M + K if with_anchors else M)
    deep = [prompt[first:] for prompt in deep]
    encoder = OwnPromptsEncoder(clip, deep, 1 + first)
    own = [block.prompt for block in encoder.transformer.resblocks if block.prompt is not None]
    halves = [prompt.half().float() for prompt in own]
    want = plain_features(clip, prompts(), tokens, halves, position, first)
    upstream = torch.randn(len(NAMES), 32)
    forward = install(encoder, prompts=anchored(position), in_use=fast)
    got = encoder(prompts(), tokens)
    assert forward.in_use == fast
    assert (got - want).norm() <= 1e-5 * want.norm()
    gradients = [torch.autograd.grad(f, [context, *own], upstream) for f in (got, want)]
    for ours, theirs in zip(*gradients, strict=True):
        # Gradients of what is rounded on the way are rounded too.
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm()


@pytest.mark.parametrize("encoder_type", [DeepEncoder, ForkedEncoder])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("early", [0, 1])
def test_anchors_are_read_as_in_the_released_code(encoder_type, fast, early):
    """Slots 0 and 3 hold the first anchor: it is read at slot 0, or, one slot early, at SOS."""
    clip = deep_clip()
    position = AnchorPositionModule(M, torch.randn(K, 64), relaxation="gumbel").eval()
    with torch.no_grad():
        position.logits.copy_(9 * torch.eye(M + K)[[M, 0, 1, M, M + 1]])
    tokens, prompts, leaves, deep = parts(clip, M + K)
    want = plain_features(clip, prompts(), tokens, deep, position, early=early)
    encoder = encoder_type(clip)
    survivors = Survivors(early=early, first=True)
    install(encoder, prompts=anchored(position, survivors=survivors), in_use=fast)
    got = encoder(prompts(), tokens, deep)
    assert (got - want).norm() <= 1e-5 * want.norm()
    own = encoder_type(clip)
    install(own, prompts=anchored(position), in_use=fast)
    other = own(prompts(), tokens, deep)
    assert (got - other).norm() > 1e-3 * want.norm()
    upstream = torch.randn(len(NAMES), 32)
    gradients = [torch.autograd.grad(f, leaves, upstream) for f in (got, want)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


class ClassAwareEncoder(DeepEncoder):
    """Writes something of each class's own over the context: not a deep prompt."""

    def forward(self, prompts, tokens):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(self.transformer.resblocks):
            x = block(torch.cat([x[:1], x[2:3], x[2:]]) if number == 2 else x)
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


def test_what_is_written_over_in_an_unknown_way_is_told_where_anchors_would_be_lost(caplog):
    clip = deep_clip()
    tokens, prompts, _, _ = parts(clip, M)
    encoder = ClassAwareEncoder(clip)
    plain = encoder(prompts(), tokens)
    (forward,) = accelerate(encoder)
    assert torch.equal(encoder(prompts(), tokens), plain)
    assert not forward.in_use and "before text block 2" in caplog.text
    forward = install(ClassAwareEncoder(clip), prompts=anchored(position_module()))
    with pytest.raises(UserError, match="ClassAwareEncoder changes hidden states"):
        forward.encoder(prompts(), tokens)


def test_a_deep_prompt_longer_than_the_context_is_told():
    clip = deep_clip()
    tokens, prompts, _, deep = parts(clip, M + K)
    position = AnchorPositionModule(M - 1, torch.randn(K + 1, 64))
    forward = install(DeepEncoder(clip), prompts=anchored(position))
    with pytest.raises(UserError, match="over rows 1 to 3 before text block 1, but"):
        forward.encoder(prompts(), tokens, deep)


def test_the_layout_reaches_the_position_logits_at_every_block():
    clip, position = deep_clip(), position_module()
    tokens, prompts, _, deep = parts(clip, M + K)
    encoder = DeepEncoder(clip)
    install(encoder, prompts=anchored(position))
    encoder(prompts().detach(), tokens, deep).square().sum().backward()
    assert position.logits.grad.abs().sum() > 0
    assert all(prompt.grad.abs().sum() > 0 for prompt in deep)


def test_soft_and_repeated_anchors_are_read_where_they_stand():
    position = AnchorPositionModule(1, torch.zeros(2, 4), relaxation="gumbel").eval()
    slots, deep = torch.arange(12.0).view(3, 4), torch.full((1, 4), 99.0)
    with torch.no_grad():
        # Slots 0 and 2 hold anchor 0, slot 1 the soft token; anchor 1 is lost.
        position.logits.copy_(torch.tensor([[0.0, 9, 0], [9, 0, 0], [0, 9, 0]]))
    mean = (slots[0] + slots[2]) / 2
    assert torch.equal(arranged(position.matrix(), deep, slots), torch.stack([mean, deep[0], mean]))
    assert torch.equal(arranged(None, deep, slots[:1]), deep)


def test_class_specific_contexts_with_deep_prompts_go_to_the_host(clip):
    clip = random_clip()
    tokens, prompts, _, deep = parts(clip, M)
    given = prompts() + 0.1 * torch.randn(len(NAMES), 77, 64)
    encoder = DeepEncoder(clip)
    plain = encoder(given, tokens, deep)
    accelerate(encoder)
    torch.testing.assert_close(encoder(given, tokens, deep), plain)


def test_an_evaluation_notices_other_deep_prompts_and_another_layout():
    clip, position = deep_clip(), position_module().eval()
    tokens, prompts, _, deep = parts(clip, M + K)
    encoder = DeepEncoder(clip)
    install(encoder, prompts=anchored(position))
    with torch.no_grad():
        first = encoder(prompts(), tokens, deep)
        deep[1] += 1
        second = encoder(prompts(), tokens, deep)
        position.logits.copy_(torch.eye(M + K).roll(1, 0))
        third = encoder(prompts(), tokens, deep)
        want = plain_features(clip, prompts(), tokens, deep, position)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    torch.testing.assert_close(third, want, rtol=1e-4, atol=1e-5)
