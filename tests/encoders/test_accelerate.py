"""The fast branch in place of a text encoder, against that encoder."""

from __future__ import annotations

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

from anchoropt_plugin import accelerate, fast_text, restore
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.fast_forward import REMEMBERED
from anchoropt_plugin.errors import UserError
from tests.conftest import random_clip
from trainers.prompted_clip import TextEncoder

NAMES = ["cat", "golden retriever", "grand piano player on a roof", "cat", "a b c d"]
N_CTX = 4


class Prompts:
    """Tokens and prompts of ``NAMES`` behind a context."""

    def __init__(self, clip, names=NAMES):
        self.tokens = tokenize([f"X X X X {name}." for name in names])
        self.embedded = clip.token_embedding(self.tokens)

    def behind(self, context):
        """``context`` is (…, M, d), (…, C, M, d) or anything that expands to it."""
        rows = self.embedded.expand(*context.shape[:-3], -1, -1, -1)
        context = context.expand(*rows.shape[:-2], *context.shape[-2:])
        return torch.cat([rows[..., :1, :], context, rows[..., 1 + N_CTX :, :]], -2)


@pytest.fixture
def clip():
    return random_clip()


@pytest.fixture
def prompts(clip):
    return Prompts(clip)


def features_and_gradient(encoder, prompts, context, upstream):
    leaf = context.clone().requires_grad_()
    features = encoder(prompts.behind(leaf), prompts.tokens)
    (features * upstream).sum().backward()
    return features.detach(), leaf.grad


@pytest.mark.parametrize(
    ("shape", "shared"), [((1, N_CTX, 64), 1 + N_CTX), ((len(NAMES), N_CTX, 64), 1)]
)
@pytest.mark.parametrize("equal_start", [True, False])
def test_features_and_gradient_of_shared_and_class_specific_contexts(
    clip, prompts, shape, shared, equal_start
):
    """Class-specific contexts that start out equal must still get gradients of their own."""
    context = 0.02 * torch.randn(1, N_CTX, 64) if equal_start else 0.02 * torch.randn(shape)
    context = context.expand(shape).clone()
    upstream = torch.randn(len(NAMES), 32)
    plain = features_and_gradient(TextEncoder(clip), prompts, context, upstream)
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    ours = features_and_gradient(encoder, prompts, context, upstream)
    assert fast.in_use and list(fast._sharing.values()) == [(shared, shared > 1)]
    for got, want in zip(ours, plain, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_without_a_graph_sharing_goes_by_value(clip, prompts):
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    with torch.no_grad():
        features = encoder(prompts.behind(torch.zeros(len(NAMES), N_CTX, 64)), prompts.tokens)
    assert not fast._sharing and fast.in_use and len(features) == len(NAMES)


def test_groups_of_classes_with_their_own_contexts_share_none(clip, prompts):
    group = torch.tensor([0, 0, 1, 1, 1])
    upstream = torch.randn(len(NAMES), 32)
    start = 0.02 * torch.randn(1, N_CTX, 64).expand(2, -1, -1)
    gradients = []
    for encoder in (TextEncoder(clip), TextEncoder(clip)):
        leaf = start.clone().requires_grad_()
        if gradients:
            accelerate(encoder)
        features = encoder(prompts.behind(leaf[group]), prompts.tokens)
        gradients.append(torch.autograd.grad(features, leaf, upstream)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()


def test_an_encoder_that_does_something_else_keeps_its_own_forward(clip, prompts, caplog):
    class Louder(TextEncoder):
        def forward(self, prompts, tokens):
            return 2 * super().forward(prompts, tokens)

    encoder = Louder(clip)
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    plain = encoder(given, prompts.tokens)
    (fast,) = accelerate(encoder)
    assert torch.equal(encoder(given, prompts.tokens), plain)
    assert not fast.in_use and "differs from Louder" in caplog.text


@pytest.mark.parametrize("kept", [0.0, 0.1])
def test_an_encoder_that_stops_or_scales_the_gradient_keeps_its_own_forward(
    clip, prompts, caplog, kept
):
    class Scaling(TextEncoder):
        def forward(self, prompts, tokens):
            features = super().forward(prompts, tokens)
            return features.detach() if not kept else kept * features + 0.9 * features.detach()

    ctx = (0.02 * torch.randn(1, N_CTX, 64)).requires_grad_()
    given = prompts.behind(ctx), prompts.tokens
    encoder = Scaling(clip)
    (fast,) = accelerate(encoder)
    found = encoder(*given)
    assert torch.equal(found, Scaling.forward(encoder, *given))
    assert found.requires_grad == bool(kept)
    assert not fast.in_use and "its gradient differs from that of Scaling" in caplog.text


def test_an_encoder_that_scales_the_gradient_of_a_weight_keeps_its_own_forward(
    clip, prompts, caplog
):
    class Slow(TextEncoder):
        def forward(self, prompts, tokens):
            weight = self.ln_final.weight
            slow = 0.1 * weight + 0.9 * weight.detach()
            with mock.patch.dict(self.ln_final._parameters, weight=slow):
                return super().forward(prompts, tokens)

    encoder = Slow(clip).requires_grad_(False)
    encoder.ln_final.weight.requires_grad_()
    (fast,) = accelerate(encoder)
    encoder(prompts.behind(torch.zeros(1, N_CTX, 64)), prompts.tokens)
    assert not fast.in_use and "does not read ln_final.weight of Slow" in caplog.text


def test_an_encoder_that_cannot_be_read_keeps_its_own_forward(clip, prompts, caplog):
    class Passing(nn.Module):
        """Not CLIP's transformer."""

        def __init__(self):
            super().__init__()
            self.resblocks = nn.Sequential(nn.Identity())

        def forward(self, x):
            return x

    encoder = TextEncoder(clip)
    encoder.transformer = Passing()
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    plain = encoder(given, prompts.tokens)
    (fast,) = accelerate(encoder)
    assert torch.equal(encoder(given, prompts.tokens), plain)
    assert not fast.in_use and "cannot read TextEncoder" in caplog.text


def test_calls_with_further_arguments_go_to_the_host(clip, prompts):
    class Deep(TextEncoder):
        def forward(self, prompts, tokens, deep=None):
            return deep if deep is not None else super().forward(prompts, tokens)

    encoder = Deep(clip)
    accelerate(encoder)
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    assert encoder(given, prompts.tokens, "deep") == "deep"
    assert encoder(given, prompts.tokens, deep="deep") == "deep"


def test_restore_and_copies(clip, prompts):
    model = nn.Module()
    model.text_encoder = TextEncoder(clip)
    keys = list(model.state_dict())
    (fast,) = accelerate(model)
    assert accelerate(model) == [fast]
    assert list(model.state_dict()) == keys
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    features = model.text_encoder(given, prompts.tokens)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.text_encoder(given, prompts.tokens), features)
        assert copied.text_encoder.forward.encoder is copied.text_encoder
    restore(model)
    assert "forward" not in vars(model.text_encoder)


def test_weights_loaded_later_are_the_ones_used(clip, prompts):
    encoder = TextEncoder(clip)
    accelerate(encoder)
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    encoder(given, prompts.tokens)
    other = TextEncoder(random_clip(seed=1))
    encoder.load_state_dict(other.state_dict())
    torch.testing.assert_close(
        encoder(given, prompts.tokens), other(given, prompts.tokens), rtol=1e-4, atol=1e-5
    )


def test_the_decorator_returns_the_same_class(clip):
    class Host:
        def build_model(self):
            self.model = TextEncoder(clip)

    assert fast_text(Host) is Host
    host = Host()
    host.build_model()
    assert len(accelerate(host.model)) == 1 and "forward" in vars(host.model)


def test_a_small_class_specific_part_gets_its_own_gradient(clip, prompts):
    """Its gradient is a thousandth of the shared context's."""
    shared, own = torch.zeros(1, N_CTX, 64), torch.zeros(len(NAMES), N_CTX, 64)
    upstream = torch.randn(len(NAMES), 32)
    gradients = []
    for fast in (False, True):
        encoder = TextEncoder(clip)
        if fast:
            accelerate(encoder)
        leaves = [shared.clone().requires_grad_(), own.clone().requires_grad_()]
        features = encoder(prompts.behind(leaves[0] + 0.001 * leaves[1]), prompts.tokens)
        gradients.append(torch.autograd.grad(features, leaves, upstream))
    for want, got in zip(*gradients, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_training_after_a_first_call_in_inference_mode(clip, prompts):
    encoder = TextEncoder(clip)
    accelerate(encoder)
    context = torch.zeros(1, N_CTX, 64, requires_grad=True)
    with torch.inference_mode():
        encoder(prompts.behind(context), prompts.tokens)
    encoder(prompts.behind(context), prompts.tokens).sum().backward()
    assert context.grad.abs().sum() > 0


def test_the_check_is_not_misled_by_autocast(clip, prompts):
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    plain = fast.host_forward(given, prompts.tokens)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(given, prompts.tokens)
    assert fast.in_use and fast.error < 1e-5
    assert torch.nn.functional.cosine_similarity(features.float(), plain).min() > 0.999


def test_keyword_arguments(clip, prompts):
    encoder = TextEncoder(clip)
    given = prompts.behind(torch.zeros(1, N_CTX, 64))
    plain = encoder(given, tokenized_prompts=prompts.tokens)
    (fast,) = accelerate(encoder)
    torch.testing.assert_close(encoder(given, tokenized_prompts=prompts.tokens), plain)
    assert fast.error is not None
    with pytest.raises(TypeError):
        encoder(given)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_classes_in_chunks_give_the_same_and_save_less(clip, prompts, chunk):
    context, upstream = 0.02 * torch.randn(1, N_CTX, 64), torch.randn(len(NAMES), 32)
    results, saved = [], []
    for size in (0, chunk):
        encoder = TextEncoder(clip)
        (fast,) = accelerate(encoder)
        fast.chunk = size
        encoder(prompts.behind(context), prompts.tokens)  # the check
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x
        ):
            results.append(features_and_gradient(encoder, prompts, context, upstream))
        saved.append(sum(kept))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
    assert chunk == len(NAMES) or saved[1] < saved[0] / 3


def test_an_evaluation_encodes_its_prompts_once(clip, prompts, monkeypatch):
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    context = 0.02 * torch.randn(1, N_CTX, 64)
    encoder(prompts.behind(context), prompts.tokens)  # the check
    encoded = []
    plain = fast.tower.encode
    monkeypatch.setattr(fast.tower, "encode", lambda *args: encoded.append(1) or plain(*args))
    with torch.no_grad():
        features = [encoder(prompts.behind(context), prompts.tokens) for _ in range(3)]
        assert len(encoded) == 1 and torch.equal(features[0], features[2])
        encoder(prompts.behind(context + 1e-6), prompts.tokens)
        assert len(encoded) == 2
        encoder.load_state_dict(TextEncoder(random_clip(seed=1)).state_dict())
        again = encoder(prompts.behind(context + 1e-6), prompts.tokens)
        assert len(encoded) == 3 and not torch.equal(again, features[0])
    encoder(prompts.behind(context + 1e-6), prompts.tokens)
    assert len(encoded) == 4  # with gradients enabled it is always computed
    assert copy.deepcopy(fast)._last._features is None


@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_are_put_in_their_place_through_data_are_noticed(clip, prompts, trained):
    """The average of weights is tested so; of frozen weights a new tensor is noticed."""
    encoder = TextEncoder(clip).requires_grad_(False)
    weight = encoder.ln_final.weight.requires_grad_(trained)
    accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with torch.no_grad():
        encoder(*given)
        before = encoder(*given)
        average = weight * torch.rand_like(weight)
        if trained:
            weight.data.copy_(average)
        else:
            weight.data = average
        found = encoder(*given)
        torch.testing.assert_close(found, TextEncoder.forward(encoder, *given))
        assert not torch.allclose(found, before, rtol=0.1)


def test_features_that_a_host_changes_in_place_are_not_those_kept(clip, prompts):
    encoder = TextEncoder(clip)
    accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with torch.no_grad():
        plain = encoder(*given).clone()
        for _ in range(3):
            features = encoder(*given)
            assert torch.equal(features, plain)
            features *= 100


def test_features_kept_in_inference_mode_serve_a_graph_later(clip, prompts):
    encoder = TextEncoder(clip)
    accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with torch.inference_mode():
        encoder(*given)
    with torch.no_grad():
        features = encoder(*given)
    weight = torch.ones(32, requires_grad=True)
    (weight * features).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("second", ["another learner", "unfrozen later"])
def test_class_names_learned_by_some_prompts_alone_get_their_gradient(clip, prompts, second):
    """What the prompts of the first call share says nothing about those of another origin."""
    upstream = torch.randn(len(NAMES), 32)
    results = []
    for encoder in (TextEncoder(clip), TextEncoder(clip)):
        if results:
            (fast,) = accelerate(encoder)
        torch.manual_seed(0)
        context = nn.Parameter(0.02 * torch.randn(1, N_CTX, 64))
        names = nn.Parameter(torch.zeros(len(NAMES), 76 - N_CTX, 64), requires_grad=False)

        def behind(context=context, names=names):
            x = prompts.behind(context)
            return torch.cat([x[:, : 1 + N_CTX], x[:, 1 + N_CTX :] + names], 1)

        first = prompts.behind(context) if second == "another learner" else behind()
        encoder(first, prompts.tokens).sum().backward()
        names.requires_grad_()
        (encoder(behind(), prompts.tokens) * upstream).sum().backward()
        results.append((context.grad, names.grad))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
    assert len(fast._sharing) == 2


def test_equal_contexts_of_each_class_behind_a_shared_one(clip, prompts):
    upstream = torch.randn(len(NAMES), 32)
    encoder = TextEncoder(clip)
    shared = (0.02 * torch.randn(1, N_CTX, 64)).requires_grad_()
    own = shared.detach().expand(len(NAMES), -1, -1)
    plain = features_and_gradient(encoder, prompts, own, upstream)
    accelerate(encoder)
    encoder(prompts.behind(shared), prompts.tokens).sum().backward()
    for got, want in zip(
        features_and_gradient(encoder, prompts, own, upstream), plain, strict=True
    ):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_what_prompts_share_is_remembered_for_a_few_origins(clip, prompts):
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    kept = [torch.randn(1, N_CTX, 64, requires_grad=True) for _ in range(REMEMBERED + 2)]
    for context in kept:
        encoder(prompts.behind(context), prompts.tokens)
    assert len(fast._sharing) == 2


class Adapted(nn.Linear):
    """A frozen linear map with a low-rank addition that starts at zero."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features)
        self.weight, self.bias = plain.weight, plain.bias
        self.down = nn.Parameter(torch.randn(2, plain.in_features))
        self.up = nn.Parameter(torch.zeros(plain.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_an_adapter_that_starts_at_zero_is_not_left_out(clip, prompts, caplog, mode):
    for block in clip.transformer.resblocks:
        block.mlp.c_fc = Adapted(block.mlp.c_fc)
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with mode():
        encoder(*given)
    assert not fast.in_use and "does not read transformer.resblocks.0.mlp.c_fc.up" in caplog.text
    encoder(*given).sum().backward()
    assert clip.transformer.resblocks[0].mlp.c_fc.up.grad.any()


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 0.7 * self.inner(x)


class Transparent(Wrapped):
    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


@pytest.mark.parametrize("wrapper", [Wrapped, Transparent, Adapted])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_a_part_that_is_replaced_after_the_first_call_is_not_left_out(
    clip, prompts, caplog, wrapper, mode
):
    encoder = TextEncoder(clip)
    (fast,) = accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with mode():
        encoder(*given)
        assert fast.in_use
        mlp = clip.transformer.resblocks[0].mlp
        if wrapper is Adapted:
            mlp.c_fc = Adapted(mlp.c_fc)
        else:
            clip.transformer.resblocks[0].mlp = wrapper(mlp)
        assert torch.equal(encoder(*given), TextEncoder.forward(encoder, *given))
    assert not fast.in_use and "its own forward stays" in caplog.text


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_an_adapter_of_another_module_is_not_left_out(clip, prompts, caplog, mode):
    class Outside(TextEncoder):
        def forward(self, prompts, tokenized_prompts):
            features = super().forward(prompts, tokenized_prompts)
            return features + self.held[0](features)

    adapter = nn.Linear(clip.text_projection.shape[1], clip.text_projection.shape[1], bias=False)
    nn.init.zeros_(adapter.weight)
    encoder = Outside(clip)
    encoder.held = [adapter]
    (fast,) = accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    with mode():
        encoder(*given)
    assert not fast.in_use and f"a trained tensor of the shape {[*adapter.weight.shape]}" in (
        caplog.text
    )
    encoder(*given).sum().backward()
    assert adapter.weight.grad.any()


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("name", ["transformer.resblocks.0", "transformer.resblocks.0.mlp.c_proj"])
def test_forward_hooks_within_the_encoder_are_not_left_out(clip, prompts, caplog, name, is_late):
    encoder = TextEncoder(clip)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    scale = nn.Parameter(torch.tensor(1.0))
    (fast,) = accelerate(encoder)
    with torch.no_grad():
        before = encoder(*given) if is_late else None
    encoder.get_submodule(name).register_forward_hook(lambda module, args, output: output * scale)
    with torch.no_grad():
        scale.fill_(1.5)
        assert before is None or not torch.allclose(encoder(*given), before, atol=1e-3)
    encoder(*given).square().sum().backward()
    assert scale.grad is not None
    assert not fast.in_use and "passes over the forward hooks in TextEncoder" in caplog.text


def test_an_encoder_that_computes_otherwise_later_is_noticed(clip, prompts, caplog):
    class Switched(TextEncoder):
        scale = 0.0

        def forward(self, prompts, tokenized_prompts):
            return super().forward(prompts, tokenized_prompts) + self.scale * self.training

    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    for switch in (nn.Module.train, lambda encoder: encoder.forward.compare_again()):
        encoder = Switched(clip)
        encoder.train(switch is not nn.Module.train)
        (fast,) = accelerate(encoder)
        encoder(*given)
        assert fast.in_use
        encoder.scale = 1.0
        switch(encoder)
        found = encoder(*given)
        assert not fast.in_use and torch.equal(found, Switched.forward(encoder, *given))
    assert "differs from Switched" in caplog.text


def test_dropout_after_a_first_call_in_evaluation_is_not_left_out(clip, prompts):
    class Dropping(TextEncoder):
        def __init__(self, clip):
            super().__init__(clip)
            self.drop = nn.Dropout(0.5)

        def forward(self, prompts, tokenized_prompts):
            return self.drop(super().forward(prompts, tokenized_prompts))

    encoder = Dropping(clip).eval()
    (fast,) = accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    encoder(*given)
    assert not fast.in_use and (encoder.train()(*given) == 0).any()


def test_an_encoder_that_is_trained_itself_keeps_the_fast_branch(clip, prompts):
    clip.ln_final.requires_grad_()
    plain, encoder = TextEncoder(clip), TextEncoder(clip)
    (fast,) = accelerate(encoder)
    given = prompts.behind(0.02 * torch.randn(1, N_CTX, 64)), prompts.tokens
    found = []
    for branch in (plain, encoder):
        clip.ln_final.weight.grad = None
        branch(*given).sum().backward()
        found.append(clip.ln_final.weight.grad)
    assert fast.in_use and (found[0] - found[1]).norm() <= 1e-5 * found[0].norm()


def test_a_model_without_a_text_encoder_is_told_so(caplog):
    assert accelerate(random_clip()) == []
    assert "CLIP has no text encoder that takes embedded prompts" in caplog.text


def test_what_is_no_trainer_is_refused():
    with pytest.raises(UserError, match="'Linear', which has no build_model"):
        fast_text(nn.Linear)


BACKENDS = []
if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9
    BACKENDS = [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]


def as_new():
    """Set the precision of matrix products to that of a new process."""
    torch.set_float32_matmul_precision("highest")
    for backend in BACKENDS:
        backend.fp32_precision = "none"


@pytest.fixture
def precisions():
    """Return a function that reads the precisions of matrix products."""
    as_new()
    if BACKENDS:
        yield lambda: [backend.fp32_precision for backend in BACKENDS]
    else:
        yield lambda: ["", torch.get_float32_matmul_precision()]
    as_new()


PRECISIONS = {
    "both": lambda: torch.set_float32_matmul_precision("high"),
    "cuda, older": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cuda, newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all, newer": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.mark.parametrize("way", PRECISIONS)
def test_the_comparison_is_without_tf32(clip, monkeypatch, precisions, way):
    """Under TF32 both sides round, by more than the tolerance."""
    if "newer" in way and not BACKENDS:
        pytest.skip("torch before 2.9")
    seen = []
    encoder = TextEncoder(clip)
    forward = TextEncoder.forward
    monkeypatch.setattr(
        TextEncoder,
        "forward",
        lambda *given: (seen.append(precisions()[1]), forward(*given))[1],
    )
    (fast,) = accelerate(encoder)
    tokens = tokenize([f"X X {name}." for name in NAMES])
    PRECISIONS[way]()
    before = precisions()
    encoder(clip.token_embedding(tokens), tokens)
    assert precisions() == before and before[1] in ("high", "tf32")
    assert fast.in_use and {"highest", "ieee"} & {*seen}
