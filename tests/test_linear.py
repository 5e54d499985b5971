"""Frozen linear maps against F.linear."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from anchoropt_plugin import linear
from anchoropt_plugin.linear import frozen_linear


def parts(dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(7, 16, dtype=dtype, requires_grad=True)
    return x, torch.randn(24, 16, dtype=dtype), torch.randn(24, dtype=dtype)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_and_gradient(dtype, with_bias):
    x, weight, bias = parts(dtype)
    bias = bias if with_bias else None
    upstream = torch.randn(24, 7, dtype=dtype).t()  # not contiguous
    got, want = frozen_linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(out, x, upstream)[0] for out in (got, want)]
    torch.testing.assert_close(*gradients)


def test_the_other_library_is_used_where_it_can_be(monkeypatch):
    assert linear._onednn_works()
    calls = []
    plain = linear._product
    monkeypatch.setattr(linear, "_product", lambda *args: calls.append(1) or plain(*args))
    x, weight, bias = parts()
    frozen_linear(x, weight, bias).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_trained_weights_get_their_gradients(which):
    x, weight, bias = parts()
    trained = {"weight": weight, "bias": bias}[which].requires_grad_()
    frozen_linear(x, weight, bias).sum().backward()
    assert trained.grad.abs().sum() > 0


def test_autocast_is_respected():
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen_linear(*parts()).dtype == torch.bfloat16


def test_a_build_without_the_operator_does_without(monkeypatch):
    def missing(*args):
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "_product", missing)
    linear._onednn_works.cache_clear()
    try:
        assert not linear._onednn_works()
        x, weight, bias = parts()
        torch.testing.assert_close(frozen_linear(x, weight, bias), F.linear(x, weight, bias))
    finally:
        linear._onednn_works.cache_clear()
