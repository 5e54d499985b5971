"""Frozen linear maps against F.linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anchoropt_plugin.encoders import frozen_linear as linear
from anchoropt_plugin.encoders.frozen_linear import frozen_linear, frozen_products
from tests.conftest import random_clip


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


@pytest.fixture
def products(monkeypatch):
    """The shapes of what oneDNN multiplies."""
    shapes = []
    plain = linear._product

    def watched(x, weight, bias):
        shapes.append((*x.shape, *weight.shape))
        return plain(x, weight, bias)

    linear._onednn_works()
    monkeypatch.setattr(linear, "_product", watched)
    return shapes


def test_every_linear_map_of_an_image_encoder_goes_there(products):
    visual, images = random_clip().visual, torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = visual(images)
        with frozen_products(images.device):
            got = visual(images)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    blocks = visual.transformer.resblocks
    width, rows = visual.proj.shape[0], 3 * len(visual.positional_embedding)
    maps = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    block = [(rows, weight[1], *weight) for weight in maps]
    last = (linear.FEW, width, *visual.proj.t().shape)  # of three images
    assert products == block * len(blocks) + [last]


FORMS = {
    "rows": lambda x: x,
    "columns": lambda x: x.t().contiguous().t(),
    "with gaps": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded": lambda x: x[:, :1].expand(-1, x.shape[1]),
    "overlapping": lambda x: x.flatten().as_strided(x.shape, (2, 1)),
    "sparse": lambda x: x.to_sparse_csr(),
    "none": lambda x: x[:0],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("n_rows", [1, 6])
@pytest.mark.parametrize("of_weight", FORMS)
@pytest.mark.parametrize("of_x", FORMS)
def test_products_of_any_form(of_x, of_weight, n_rows):
    torch.manual_seed(0)
    x, weight = FORMS[of_x](torch.randn(n_rows, 4)), FORMS[of_weight](torch.randn(4, 5))
    a_row, all_rows = torch.randn(5), torch.randn(n_rows, 5)
    for product in (
        lambda: x @ weight,
        lambda: torch.addmm(a_row, x, weight),
        lambda: torch.addmm(a_row, x, weight, beta=0.5, alpha=2),
        lambda: torch.addmm(all_rows, x, weight),
        lambda: torch.addmm(a_row[:1], x, weight),
        lambda: torch.addmm(a_row[:1].expand(5), x, weight),
        lambda: torch.addmm(a_row.repeat_interleave(2)[::2], x, weight),
        lambda: torch.mm(x[0], weight),
    ):
        assert _same(product, frozen_products(x.device))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("of_weight", FORMS)
@pytest.mark.parametrize(
    "bias",
    [None, torch.ones(1), torch.tensor(2.0), torch.ones(1).expand(5), torch.arange(10.0)[::2]],
    ids=["none", "one", "number", "expanded", "with gaps"],
)
def test_linear_maps_of_any_form(of_weight, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4), FORMS[of_weight](torch.randn(5, 4))
    want = _outcome(lambda: F.linear(x, weight, bias))
    assert _agree(_outcome(lambda: frozen_linear(x, weight, bias)), want)


def _outcome(work):
    try:
        return work()
    except (RuntimeError, IndexError) as error:
        return str(error)


def _agree(got, want):
    if isinstance(want, str) or isinstance(got, str):
        return got == want
    got, want = got.to_dense(), want.to_dense()
    return got.shape == want.shape and torch.allclose(got, want, atol=1e-5)


def _same(work, where):
    """Whether ``work`` gives the same, or the same error, ``where`` as elsewhere."""
    want = _outcome(work)
    with where:
        got = _outcome(work)
    return _agree(got, want)


@pytest.mark.parametrize("width", [8, 512, 1024])
def test_a_row_does_not_depend_on_how_many_there_are(width):
    torch.manual_seed(0)
    layer = nn.Linear(width, 512)
    x = torch.randn(33, width)
    with torch.no_grad(), frozen_products(x.device):
        want = layer(x)
        for n in range(1, 33):
            assert torch.equal(layer(x[:n]), want[:n])


def test_products_of_no_rows():
    with frozen_products(torch.device("cpu")):
        assert F.linear(torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_multiplied_as_ever(dtype, products):
    x, weight, bias = parts(dtype)
    with torch.no_grad(), frozen_products(x.device):
        got = F.linear(x, weight, bias)
    assert torch.equal(got, F.linear(x, weight, bias)) and not products


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_autocast_is_respected_in_an_encoder(products):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = _outcome(lambda: encoder(x))
        with frozen_products(x.device):
            got = _outcome(lambda: encoder(x))
    assert not products
    # torch 2.4 cannot do this itself.
    assert got == want if isinstance(want, str) else torch.equal(got, want)
    assert getattr(got, "dtype", None) == getattr(want, "dtype", None)


def test_whether_it_works_is_not_asked_of_bfloat16():
    linear._onednn_works.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), frozen_products(torch.device("cpu")):
            pass
        assert linear._onednn_works()
    finally:
        torch.set_default_dtype(torch.float32)


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
        with frozen_products(x.device):
            assert torch.equal(x @ weight.t(), F.linear(x, weight))
    finally:
        linear._onednn_works.cache_clear()
