"""Hooks for learners that are laid out otherwise."""

from __future__ import annotations

import pytest
import torch

from anchoropt_plugin import PromptHook, UserError, attach, register_hook

from .test_attachment import Learner


def test_a_hook_of_ones_own(clip):
    class TwoStarts(Learner):
        """A learner whose context starts one token later."""

    class Later(PromptHook):
        def first(self, learner):
            return 2

        def n_ctx(self, learner):
            return super().n_ctx(learner) - 1

    register_hook(TwoStarts, Later())
    with pytest.raises(ValueError, match="already has a hook"):
        register_hook(TwoStarts, Later())
    learner = TwoStarts(clip)
    module = attach(learner, torch.full((1, 64), 9.0)).eval()
    assert module.n_ctx == 3
    prompts = learner()
    torch.testing.assert_close(prompts[:, 1:5], learner.ctx.expand(3, -1, -1))
    assert (prompts[:, 5] == 9).all()


@pytest.mark.parametrize(
    ("method", "value", "says"),
    [
        ("tokens", lambda learner: learner.tokenized_prompts.clone(), "returns a copy: it must"),
        ("n_ctx", lambda learner: 5, "ends the context at token 6, .* the last 72 of 77 tokens"),
        ("n_ctx", lambda learner: 3, "ends the context at token 4"),
        ("first", lambda learner: 2, "ends the context at token 6"),
        ("first", lambda learner: 0, "ends the context at token 4"),
    ],
)
def test_a_hook_that_does_not_fit_its_learner_is_refused(clip, method, value, says):
    """Features would be read elsewhere than at EOT, or class names would be moved."""
    kind = type("Mistaken", (Learner,), {})
    hook = type("Mistake", (PromptHook,), {method: lambda self, learner: value(learner)})
    register_hook(kind, hook())
    learner = kind(clip)
    before = learner.tokenized_prompts.clone()
    with pytest.raises(UserError, match=f"Mistake.* {says}"):
        attach(learner, torch.zeros(1, 64))
    assert torch.equal(learner.tokenized_prompts, before) and not learner._modules


def test_a_hook_that_reads_what_its_learner_lacks_names_its_methods(clip):
    kind = type("Bare", (Learner,), {})
    register_hook(kind, type("Partial", (PromptHook,), {"missing": lambda *_: []})())
    learner = kind(clip)
    del learner.token_prefix
    says = "Partial must override dim, first for the tensors that Bare has: .* 'token_prefix'$"
    with pytest.raises(UserError, match=says):
        attach(learner, torch.zeros(1, 64))
