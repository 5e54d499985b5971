"""The position module against plain computations."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn import functional as F

from anchoropt_plugin import AnchorPositionModule, UserError
from anchoropt_plugin.method.relaxations import RELAXATIONS

DISCRETE = ("gumbel", "sinkhorn", "identity")


def module(relaxation="sinkhorn", n_ctx=3, n_anchors=2, dim=4, **options):
    torch.manual_seed(0)
    anchors = torch.randn(n_anchors, dim, dtype=options.pop("dtype", torch.float32))
    return AnchorPositionModule(n_ctx, anchors, relaxation=relaxation, **options)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_output_is_the_matrix_times_context_and_anchors(relaxation, dtype, batch):
    arrange = module(relaxation, dtype=dtype, init_std=1.0)
    context = torch.randn(*batch, 3, 4).to(dtype)
    out = arrange(context)
    assert out.dtype == dtype and out.shape == (*batch, 5, 4)
    tokens = torch.cat([context, arrange.anchors.expand(*batch, 2, 4)], -2)
    expected = torch.einsum("ij,...jd->...id", arrange.matrix().to(dtype), tokens)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("relaxation", DISCRETE)
@pytest.mark.parametrize("training", [True, False])
def test_rows_of_a_hard_matrix_are_exactly_one_hot(relaxation, training):
    arrange = module(relaxation, init_std=2.0).train(training)
    for _ in range(20):
        matrix = arrange.draw()
        assert set(matrix.detach().unique().tolist()) == {0.0, 1.0}
        assert matrix.sum(-1).eq(1).all()


def test_sinkhorn_draws_permutations_and_gumbel_does_not():
    assert all(module("sinkhorn", init=0).draw().sum(0).eq(1).all() for _ in range(5))
    arrange = module("gumbel", init=0)
    assert not all(arrange.draw().sum(0).eq(1).all() for _ in range(20))


def test_the_mode_of_sinkhorn_is_the_best_of_all_permutations():
    arrange = module("sinkhorn", init=0, init_std=1.0).eval()
    theta = arrange.logits.detach()
    best = max(
        itertools.permutations(range(5)), key=lambda p: sum(theta[i, j] for i, j in enumerate(p))
    )
    assert arrange.matrix().argmax(-1).tolist() == list(best)


def test_soft_is_a_row_softmax_at_the_temperature():
    arrange = module("soft", init_std=1.0, temperature=0.5)
    torch.testing.assert_close(arrange.draw(), (arrange.logits / 0.5).softmax(-1))


def plain_sinkhorn(scores):
    """Twenty rounds in torch, whose autograd gives the gradient."""
    for _ in range(20):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_sinkhorn_and_its_gradient_are_those_of_autograd(n):
    arrange = AnchorPositionModule(n, torch.zeros(1, 4), init=0, init_std=2.0, temperature=0.7)
    want = plain_sinkhorn(arrange.logits / 0.7)
    torch.testing.assert_close(arrange.relaxed(), want.detach(), rtol=1e-5, atol=1e-7)
    upstream = torch.randn_like(want)
    (gradient,) = torch.autograd.grad(want, arrange.logits, upstream)
    (got,) = torch.autograd.grad(arrange.eval().draw(), arrange.logits, upstream)
    torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6)


def test_sinkhorn_soft_part_is_nearly_doubly_stochastic():
    from anchoropt_plugin.method.relaxations import _sinkhorn

    soft = torch.from_numpy(_sinkhorn(torch.randn(6, 6, dtype=torch.float64).numpy())[0])
    assert (soft.sum(0) - 1).abs().max() < 1e-6 and (soft.sum(1) - 1).abs().max() < 1e-3


def test_gradients_of_soft_against_finite_differences():
    arrange = module("soft", dtype=torch.float64, init_std=1.0)
    context = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def arranged(logits, context):
        return torch.func.functional_call(arrange, {"logits": logits}, (context,))

    assert torch.autograd.gradcheck(arranged, (arrange.logits, context))


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_the_relaxed_matrix_is_the_mode_s_neighbour_and_draws_nothing(relaxation):
    arrange = module(relaxation, init=9.0, init_std=0.5)
    state = torch.get_rng_state()
    relaxed = arrange.relaxed()
    assert torch.equal(state, torch.get_rng_state()) and not relaxed.requires_grad
    torch.testing.assert_close(relaxed.sum(-1), torch.ones(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(relaxed, arrange.eval().matrix().detach(), rtol=0, atol=0.05)


@pytest.mark.parametrize("relaxation", ["gumbel", "sinkhorn"])
def test_straight_through_gradient_is_that_of_the_relaxed_matrix(relaxation):
    """For a fixed draw: d loss / d logits by finite differences of the soft matrix."""
    from anchoropt_plugin.method.position import _gumbel

    arrange = module(relaxation, dtype=torch.float64, init_std=1.0, temperature=0.7)
    weight = torch.randn(5, 5, dtype=torch.float64)
    torch.manual_seed(1)
    (arrange.draw() * weight).sum().backward()
    torch.manual_seed(1)
    noise = _gumbel(arrange.logits.detach())

    def relaxed(logits):
        scores = (logits + noise) / 0.7
        soft = scores.softmax(-1) if relaxation == "gumbel" else plain_sinkhorn(scores)
        return (soft * weight).sum()

    theta, step = arrange.logits.detach(), 1e-6
    slope = torch.zeros_like(theta)
    for i, j in itertools.product(range(5), range(5)):
        nudge = torch.zeros_like(theta)
        nudge[i, j] = step
        slope[i, j] = (relaxed(theta + nudge) - relaxed(theta - nudge)) / (2 * step)
    torch.testing.assert_close(arrange.logits.grad, slope, rtol=1e-5, atol=1e-7)


def test_gumbel_samples_as_torch_does():
    arrange = module("gumbel", init_std=1.0)
    torch.manual_seed(3)
    ours = arrange.draw()
    torch.manual_seed(3)
    theirs = F.gumbel_softmax(arrange.logits, tau=1.0, hard=True)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_evaluation_never_samples(relaxation):
    arrange = module(relaxation, init=0, init_std=1.0).eval()
    state = torch.get_rng_state()
    first = arrange(torch.ones(3, 4))
    assert torch.equal(first, arrange(torch.ones(3, 4)))
    assert torch.equal(state, torch.get_rng_state())


def test_sample_at_eval_samples_as_the_released_code_does():
    arrange = module("gumbel", init=0, sample_at_eval=True).eval()
    assert len({arrange.draw().argmax(-1).tolist().__repr__() for _ in range(20)}) > 1


def test_one_forward_draws_once_and_matrix_tells_what_it_drew():
    arrange = module("sinkhorn", init=0)
    torch.manual_seed(0)
    out = arrange(torch.randn(7, 3, 4))
    state = torch.get_rng_state()
    matrix = arrange.matrix()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(out[:, matrix[:, 3].argmax()], arrange.anchors[0].expand(7, -1))


def test_in_evaluation_the_matrix_follows_the_logits():
    arrange = module("sinkhorn").eval()
    assert torch.equal(arrange.matrix(), torch.eye(5))
    with torch.no_grad():
        arrange.logits.copy_(torch.eye(5).flip(0))
    assert torch.equal(arrange.matrix(), torch.eye(5).flip(0))


def test_anchors_are_a_buffer_and_get_no_gradient():
    arrange = module("soft")
    arrange(torch.ones(3, 4)).sum().backward()
    assert [name for name, _ in arrange.named_parameters()] == ["logits"]
    assert set(arrange.state_dict()) == {
        "logits",
        "anchors",
        "_extra_state",
        "relaxation",
        "pooling",
    }
    assert not arrange.anchors.requires_grad


def test_survives_copying_and_pickling_after_a_training_forward():
    arrange = module("sinkhorn")
    arrange(torch.ones(3, 4))
    for copied in (copy.deepcopy(arrange), pickle.loads(pickle.dumps(arrange))):
        assert torch.equal(copied.eval()(torch.ones(3, 4)), arrange.eval()(torch.ones(3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relaxation": "sinkhron"}, "sinkhron"),
        ({"temperature": 0.0}, "positive"),
        ({"n_ctx": 0}, "at least one"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        module(**change)


def test_a_context_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(…, 4, 4\): expected \(…, 3, 4\)"):
        module()(torch.ones(4, 4))
    with pytest.raises(ValueError, match="expected floating point"):
        AnchorPositionModule(2, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="the anchors are not finite"):
        AnchorPositionModule(2, torch.full((1, 4), torch.nan))


def test_the_task_moves_the_logits_by_a_map_that_starts_at_zero():
    module = AnchorPositionModule(2, torch.zeros(1, 4), relaxation="soft", task_dim=5)
    plain = AnchorPositionModule(2, torch.zeros(1, 4), relaxation="soft")
    module.task.copy_(torch.arange(5.0))
    assert torch.equal(module.draw(), plain.draw())
    module.draw()[0, 1].backward()
    # The gradient of an offset, times the task.
    expected = module.logits.grad[..., None] * torch.arange(5.0)
    torch.testing.assert_close(module.task_map.grad, expected)
    with torch.no_grad():
        module.task_map[0, 2, 3] = 1.0
    logits = plain.logits.detach().clone()
    logits[0, 2] += 3
    torch.testing.assert_close(module.relaxed(), logits.softmax(-1))
    saved = {"anchors", "logits", "task_map", "_extra_state", "relaxation", "pooling"}
    assert set(module.state_dict()) == saved


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_a_state_of_another_relaxation_is_refused_and_nothing_of_it_is_loaded(relaxation):
    state = module(relaxation, init_std=1.0).state_dict()
    again = module(relaxation)
    again.load_state_dict(state)
    assert torch.equal(again.logits, state["logits"])
    for other in RELAXATIONS.keys() - {relaxation}:
        arrange = module(other)
        before = arrange.logits.detach().clone()
        with pytest.raises(UserError, match=f"relaxation '{relaxation}', but here it is '{other}'"):
            arrange.load_state_dict(state)
        assert torch.equal(arrange.logits, before)
        del state["relaxation"]  # as earlier versions saved it
        arrange.load_state_dict(state)
        assert torch.equal(arrange.logits, state["logits"])
        state = again.state_dict()


def test_the_numbers_of_relaxations_in_checkpoints_stay():
    numbers = {name: int(module(name).state_dict()["relaxation"]) for name in RELAXATIONS}
    assert numbers == {"gumbel": 0, "sinkhorn": 1, "soft": 2, "identity": 3}
