"""The objective against sums written out."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.nn import functional as F

from anchoropt_plugin import UserError
from anchoropt_plugin.method.objective import HOTTEST, PromptLoss, average, distillation
from anchoropt_plugin.training.settings import AnchorOPTConfig


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


def test_a_temperature_at_which_float32_loses_the_distillation_is_refused():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = 5 * torch.randn(2, 32, 5, generator=generator)
    exact = [(logits.double() / HOTTEST).log_softmax(-1) for logits in ((ours + theirs) / 2, ours)]
    want = HOTTEST**2 * F.kl_div(exact[1], exact[0], reduction="sum", log_target=True) / 160
    assert distillation(ours, theirs, HOTTEST).item() == pytest.approx(want.item(), rel=1e-3)
    for temperature in (0.0, 2 * HOTTEST):
        with pytest.raises(ValueError, match="the temperature is"):
            distillation(ours, theirs, temperature)
    with pytest.raises(UserError, match="KD_TEMPERATURE must be at most 100"):
        AnchorOPTConfig(kd_temperature=2 * HOTTEST)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_logits_that_are_no_batch_of_classes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected both to be \(B, C\)"):
        distillation(torch.zeros(shape), torch.zeros(shape))


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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distillation_has_the_reduction_of_the_cross_entropy(reduction):
    torch.manual_seed(0)
    prompt, anchor = torch.randn(4, 6) * 3, torch.randn(4, 6) * 3
    each = [written_out(prompt[i : i + 1], anchor[i : i + 1], 2.0) for i in range(4)]
    expected = {"mean": sum(each) / 4, "sum": sum(each), "none": each}[reduction]
    got = distillation(prompt, anchor, 2.0, reduction)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "reduction"),
    [
        ({}, "mean"),
        ({"reduction": "sum"}, "sum"),
        ({"reduction": "none"}, "none"),
        ({"size_average": False}, "sum"),
        ({"reduce": False}, "none"),
        ({"label_smoothing": 0.1}, "mean"),
    ],
)
def test_cross_entropies_are_replaced_and_read(given, reduction):
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    seen = []

    def replace(one):
        seen.append(one)
        return 2 * one.value + 0 * F.cross_entropy(logits, labels)  # not seen: not the host's

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older names of reductions
        plain = F.cross_entropy(logits, labels, **given)
        with PromptLoss(replace):
            both = (
                F.cross_entropy(logits, labels, **given),
                torch.nn.CrossEntropyLoss(**given)(input=logits, target=labels),
            )
    for loss in both:
        torch.testing.assert_close(loss, 2 * plain)
    assert len(seen) == 2 and {one.reduction for one in seen} == {reduction}
    assert all(one.logits is logits and one.targets is labels for one in seen)


def test_half_precision_logits_are_averaged_in_float32():
    half = torch.tensor([[60000.0]], dtype=torch.float16)
    assert average(half, half).item() == 60000.0
