"""The objective against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from anchoropt_plugin.method.objective import PromptLoss, average, distillation


def written_out(prompt, anchor, temperature):
    total = 0.0
    for l_n, l_a in zip(prompt.tolist(), anchor.tolist(), strict=True):
        ens = [(a + b) / 2 / temperature for a, b in zip(l_n, l_a, strict=True)]
        own = [a / temperature for a in l_n]
        log_p = [x - math.log(sum(map(math.exp, ens))) for x in ens]
        log_q = [x - math.log(sum(map(math.exp, own))) for x in own]
        total += sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * total / (len(prompt) * len(prompt[0]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_equals_the_sum_written_out(temperature):
    torch.manual_seed(0)
    prompt, anchor = torch.randn(4, 6) * 3, torch.randn(4, 6) * 3
    expected = written_out(prompt, anchor, temperature)
    assert distillation(prompt, anchor, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_gets_no_gradient():
    prompt = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    anchor = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    distillation(prompt, anchor, 2.0).backward()
    assert anchor.grad is None
    teacher = (average(prompt, anchor).detach() / 2).softmax(-1)
    student = (prompt.detach().float() / 2).softmax(-1)
    torch.testing.assert_close(prompt.grad.float(), 2 * (student - teacher) / 12)


def test_distillation_is_finite_in_half_precision_on_large_logits():
    prompt = torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = 1000 * distillation(prompt, prompt.detach().flip(-1), 0.1)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and prompt.grad.isfinite().all()


def test_the_cross_entropies_of_the_prompt_are_replaced_and_others_are_not():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    seen = []

    def replace(loss, given):
        seen.append(given)
        return loss + F.cross_entropy(given, labels)  # not counted: it is not the host's

    with PromptLoss(replace, lambda given: given is logits) as mode:
        auxiliary = F.cross_entropy(2 * logits, labels)
        first = torch.nn.CrossEntropyLoss()(input=logits, target=labels)
        second = F.cross_entropy(logits, labels)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(torch.stack([first, second]), torch.stack([2 * plain] * 2))
    assert mode.replaced and len(seen) == 2 and all(given is logits for given in seen)
    torch.testing.assert_close(auxiliary, F.cross_entropy(2 * logits, labels))


def test_further_cross_entropies_are_weighted():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = F.cross_entropy(logits, labels)
    with PromptLoss(lambda loss, given: 10 * loss, lambda given: given is logits, 10.0):
        losses = [F.cross_entropy(x, labels) for x in (2 * logits, logits, 3 * logits)]
    before, prompt, after = (loss / 10 for loss in losses)
    torch.testing.assert_close(before, F.cross_entropy(2 * logits, labels))
    torch.testing.assert_close(prompt, plain)
    torch.testing.assert_close(after, F.cross_entropy(3 * logits, labels))


def test_half_precision_logits_are_averaged_in_float32():
    half = torch.tensor([[60000.0]], dtype=torch.float16)
    assert average(half, half).item() == 60000.0
