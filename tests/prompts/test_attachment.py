"""attach and detach on learners laid out as the public ones are."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from anchoropt_plugin import (
    AnchorPositionModule,
    AnchorTokens,
    UserError,
    attach,
    attached,
    detach,
)
from anchoropt_plugin.encoders.clip_models import tokenize

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["cat", "golden retriever", "red panda"]


class Learner(nn.Module):
    """A learner of the CoOp family; ``shape`` says how it returns its prompts."""

    def __init__(self, clip, n_ctx=4, shape="plain"):
        super().__init__()
        words = " ".join(["X"] * n_ctx)
        self.tokenized_prompts = tokenize([f"{words} {name}." for name in NAMES])
        embedding = clip.token_embedding(self.tokenized_prompts)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])
        self.ctx = nn.Parameter(torch.randn(n_ctx, embedding.shape[-1]))
        self.shape = shape

    def forward(self, shift=None):
        ctx = self.ctx if shift is None else self.ctx + shift[:, None, None, :]
        batch = ctx.shape[:-2] if shift is None else (len(shift),)
        ctx = ctx.expand(*batch, len(NAMES), *self.ctx.shape)
        prefix = self.token_prefix.expand(*batch, -1, -1, -1)
        suffix = self.token_suffix.expand(*batch, -1, -1, -1)
        prompts = torch.cat([prefix, ctx, suffix], -2)
        return (prompts, "more", self.ctx) if self.shape == "tuple" else prompts


@pytest.fixture
def learner(clip):
    return Learner(clip)


def arranged_plainly(learner, module):
    """Every prompt put together token by token."""
    tokens = torch.cat([learner.ctx, module.anchors])
    context = torch.stack([tokens[i] for i in module.matrix().argmax(-1).tolist()])
    rows = []
    for prefix, suffix in zip(learner.token_prefix, learner.token_suffix, strict=True):
        rows.append(torch.cat([prefix, context, suffix[: -module.n_anchors]]))
    return torch.stack(rows)


@pytest.mark.parametrize("n_anchors", [1, 3])
def test_prompts_carry_the_arranged_context(learner, n_anchors):
    module = attach(learner, torch.randn(n_anchors, 64), init=0, init_std=1.0)
    for mode in (True, False):
        learner.train(mode)
        prompts = learner()
        torch.testing.assert_close(prompts, arranged_plainly(learner, module))
        assert prompts.shape == (3, 77, 64)


@pytest.mark.parametrize("n_anchors", [1, 3])
def test_tokens_are_those_of_the_longer_prompt_wherever_the_host_keeps_them(learner, n_anchors):
    held_by_host = learner.tokenized_prompts
    attach(learner, torch.zeros(n_anchors, 64))
    words = " ".join(["X"] * (4 + n_anchors))
    longer = tokenize([f"{words} {name}." for name in NAMES])
    assert torch.equal(held_by_host, longer)


def test_unshifted_pooling_leaves_the_tokens(learner):
    before = learner.tokenized_prompts.clone()
    attach(learner, torch.zeros(1, 64), pooling="unshifted")
    assert torch.equal(learner.tokenized_prompts, before)
    detach(learner)
    assert torch.equal(learner.tokenized_prompts, before)


def test_prompts_per_image_are_arranged_with_one_matrix(clip):
    learner = Learner(clip)
    module = attach(learner, torch.randn(1, 64), init=0, relaxation="gumbel")
    prompts = learner(torch.randn(5, 64))
    assert prompts.shape == (5, 3, 77, 64)
    order = module.matrix().argmax(-1)
    anchors = (order == 4).nonzero().squeeze(1) + 1
    assert (prompts[:, :, anchors] == module.anchors[0]).all()


def test_prompts_first_in_a_tuple_keep_the_rest_of_it(clip):
    learner = Learner(clip, shape="tuple")
    module = attach(learner, torch.randn(1, 64)).eval()
    prompts, more, ctx = learner()
    assert more == "more" and ctx is learner.ctx
    torch.testing.assert_close(prompts, arranged_plainly(learner, module))


def test_detach_restores_the_learner_bit_for_bit(learner):
    before = copy.deepcopy(learner)
    keys = set(vars(learner))
    attach(learner, torch.randn(2, 64))
    learner()
    detach(learner)
    assert set(vars(learner)) == keys
    assert list(learner.state_dict()) == list(before.state_dict())
    assert torch.equal(learner.tokenized_prompts, before.tokenized_prompts)
    assert torch.equal(learner(), before())
    assert "forward" not in vars(learner) and not learner._modules
    module = attach(learner, torch.randn(2, 64))
    assert isinstance(module, AnchorPositionModule)


def test_a_learner_with_anchors_can_be_copied_pickled_and_detached_there(learner):
    attach(learner, torch.randn(1, 64))
    learner.eval()
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert torch.equal(copied(), learner())
        detach(copied)
        assert attached(copied) is None
    assert attached(learner) is not None


def test_forward_without_the_hooks_of_the_call_carries_anchors_too(learner):
    own = learner.forward = partial(type(learner).forward, learner)  # somebody replaced it before
    module = attach(learner, torch.randn(2, 64)).eval()
    assert torch.equal(learner.forward(), arranged_plainly(learner, module))
    assert torch.equal(learner.forward(), learner())
    detach(learner)
    assert learner.forward is own


def test_vanilla_parameters_keep_their_names(learner):
    names = set(learner.state_dict())
    attach(learner, torch.zeros(1, 64))
    more = {"logits", "anchors", "_extra_state", "relaxation", "pooling"}
    assert set(learner.state_dict()) - names == {f"anchoropt.{name}" for name in more}


@pytest.mark.parametrize(("there", "here"), [("eot", "unshifted"), ("unshifted", "eot")])
def test_a_state_of_another_pooling_is_refused(learner, there, here):
    attach(learner, torch.zeros(1, 64), pooling=there)
    state = learner.state_dict()
    learner.load_state_dict(state)
    detach(learner)
    attach(learner, torch.zeros(1, 64), pooling=here)
    with pytest.raises(UserError, match=f"has the pooling '{there}', but here it is '{here}'"):
        learner.load_state_dict(state)
    del state["anchoropt.pooling"]  # of an earlier version
    learner.load_state_dict(state)


def test_gradients_reach_context_and_logits_and_not_the_anchors(learner):
    module = attach(learner, torch.randn(1, 64), init=0)
    (learner() * torch.randn(3, 77, 64)).sum().backward()
    assert learner.ctx.grad.abs().sum() > 0 and module.logits.grad.abs().sum() > 0
    assert not module.anchors.requires_grad


def test_what_does_not_fit_is_refused(clip, learner):
    with pytest.raises(UserError, match=r"anchors are AnchorTokens: give a tensor \(K, d\), such"):
        attach(learner, AnchorTokens(torch.zeros(1, 64)))
    with pytest.raises(UserError, match=r"anchors are \(64,\): give a tensor \(K, d\)"):
        attach(learner, torch.zeros(64))
    with pytest.raises(UserError, match="do not fit a prompt of width 64"):
        attach(learner, torch.zeros(1, 32))
    attach(learner, torch.zeros(1, 64))
    with pytest.raises(UserError, match="already carries anchors"):
        attach(learner, torch.zeros(1, 64))
    detach(learner)
    with pytest.raises(UserError, match="carries no anchors"):
        detach(learner)
    with pytest.raises(UserError, match="no tensor token_prefix"):
        attach(nn.Linear(2, 2), torch.zeros(1, 64))
    learner.class_token_position = "middle"
    with pytest.raises(UserError, match="class token position 'end'"):
        attach(learner, torch.zeros(1, 64))


def test_a_prompt_without_room_is_refused_and_left_alone(learner):
    learner.tokenized_prompts[1, -1] = 5
    before = learner.tokenized_prompts.clone()
    with pytest.raises(UserError, match="class 1 has no room"):
        attach(learner, torch.zeros(1, 64))
    assert torch.equal(learner.tokenized_prompts, before) and not learner._modules


def test_tokens_that_are_put_there_after_attach_are_refused(learner):
    attach(learner, torch.randn(2, learner.ctx.shape[-1]))
    copied = copy.deepcopy(learner)
    assert torch.equal(copied.eval()(), learner.eval()())  # its tokens are a copy, but moved
    learner.tokenized_prompts = tokenize([f"X X X X {name}." for name in NAMES])
    with pytest.raises(UserError, match=r"tokens in Learner were replaced after attach"):
        learner()
    with pytest.raises(UserError, match=r"tokens in Learner were replaced after attach"):
        learner()  # still


@pytest.mark.parametrize("shape", ["plain", "tuple"])
def test_other_tokens_that_a_state_puts_into_a_buffer_are_refused(clip, shape):
    learner = Learner(clip, shape=shape)
    tokens = learner.__dict__.pop("tokenized_prompts")
    learner.register_buffer("tokenized_prompts", tokens)
    plain = copy.deepcopy(learner.state_dict())
    attach(learner, torch.zeros(1, 64))
    moved = copy.deepcopy(learner.state_dict())
    learner.load_state_dict(moved)
    learner()
    learner.load_state_dict(plain, strict=False)
    with pytest.raises(UserError, match=r"tokens in Learner were replaced after attach"):
        learner()


def test_tokens_in_which_eot_was_moved_before_are_refused(clip, learner):
    """By a learner that holds the same tensor."""
    other = Learner(clip)
    other.tokenized_prompts = learner.tokenized_prompts
    attach(learner, torch.zeros(1, 64))
    moved = learner.tokenized_prompts.clone()
    for pooling in ("eot", "unshifted"):
        with pytest.raises(UserError, match="tokens of Learner have EOT where token_suffix has pa"):
            attach(other, torch.zeros(1, 64), pooling=pooling)
    assert torch.equal(learner.tokenized_prompts, moved) and not other._modules
    detach(learner)
    attach(other, torch.zeros(1, 64))


@pytest.mark.parametrize("n_ctx", [3, 6])
def test_another_number_of_soft_tokens_after_attach_is_refused(clip, learner, n_ctx):
    attach(learner, torch.zeros(1, 64))
    learner.ctx = nn.Parameter(torch.randn(n_ctx, 64))
    says = f"Learner makes prompts of {73 + n_ctx} tokens with 4 soft tokens, .* with 4 in 77"
    with pytest.raises(UserError, match=says):
        learner()
    learner.token_suffix = Learner(clip, n_ctx).token_suffix  # such prompts have 77 tokens
    with pytest.raises(UserError, match=f"of 77 tokens with {n_ctx} soft tokens, .* with 4 in 77"):
        learner()


def test_class_tensors_loaded_in_place_are_noticed_for_any_names(clip, monkeypatch):
    """The first of the other names has one token more: its full stop stands where EOT was."""
    learner = Learner(clip)
    attach(learner, torch.randn(1, 64)).eval()
    monkeypatch.setitem(globals(), "NAMES", ["red cat", "dog", "badger"])
    other = Learner(clip)
    with torch.no_grad():
        for name in ("token_suffix", "tokenized_prompts"):
            getattr(learner, name).copy_(getattr(other, name))
    with pytest.raises(UserError, match="were replaced after attach"):
        learner()


@pytest.mark.parametrize("pooling", ["eot", "unshifted"])
def test_a_state_of_other_class_names_without_their_tokens_is_refused(clip, monkeypatch, pooling):
    learner, same = Learner(clip), Learner(clip)
    of_another_clip = {name: x + 1 for name, x in same.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "NAMES", ["dog", "silver retriever", "red badger"])
        other = Learner(clip)
    trained = {"ctx": other.ctx.detach()}
    model = nn.Sequential(learner)
    state = {f"0.{name}": x for name, x in other.state_dict().items()}
    n_hooks = len(learner._load_state_dict_pre_hooks)
    attach(learner, torch.zeros(1, 64), pooling=pooling)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = copy.deepcopy(copied[0].state_dict())
        with pytest.raises(UserError, match=r"has 0\.token_suffix of other class names"):
            copied.load_state_dict(state)
        assert all(torch.equal(x, before[name]) for name, x in copied[0].state_dict().items())
        for honest in (same.state_dict(), same.half().state_dict(), trained, of_another_clip):
            copied[0].load_state_dict(honest, strict=False)
            copied[0].load_state_dict(before)
        detach(copied[0])
        assert len(copied[0]._load_state_dict_pre_hooks) == n_hooks
        copied.load_state_dict(state)


class Framed(Learner):
    """Its context has fixed words before the soft tokens."""

    def forward(self):
        x = super().forward()
        return torch.cat([x[:, :1], x[:, 1:3].detach(), x[:, 3:]], 1)


def test_context_tokens_that_are_not_learned_are_told_once(clip, caplog):
    for kind, n_told in ((Learner, 0), (Framed, 1)):
        learner = kind(clip)
        attach(learner, torch.zeros(1, 64))
        with torch.no_grad():
            learner()
        for _ in range(2):
            learner().sum().backward()
        assert caplog.text.count("depend on nothing that is trained") == n_told
    assert "of the 4 context tokens of Framed, number 1, 2 depend on nothing" in caplog.text


_COMPILED = """
import torch
from anchoropt_plugin import attach, detach, load_clip
from tests.prompts.test_attachment import Learner

learner = Learner(load_clip("tiny")).eval()
compiled = torch.compile(learner, backend="eager")
plain = compiled()
for one in (learner, compiled):
    attach(one, torch.ones(1, 128)).eval()
    assert torch.equal(compiled(), learner()) and not torch.equal(learner(), plain)
    detach(one)
    assert torch.equal(compiled(), plain) and torch.equal(learner(), plain)
"""


def test_a_learner_that_was_compiled_before():
    # In a process of its own: a process that has compiled cannot be forked by later tests.
    words = [sys.executable, "-W", "ignore", "-c", _COMPILED]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
