"""What needs a real GPU: TF32, graphs, events, fused attention. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from anchoropt_plugin import accelerate
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.encoders.text_tower import TextTower, common_prefix
from anchoropt_plugin.experiments import fork_server
from anchoropt_plugin.experiments.checkout import CHECKOUT
from anchoropt_plugin.process.late_checks import LateCheck, LateNumber, settle_all
from benchmarks import gpu_equality
from benchmarks.plain import PlainTextEncoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU (make gpu)")

TEXTS = ["a photo of a red circle.", "a photo of a star."]


@pytest.mark.parametrize("dtype", gpu_equality.BRANCH_TOLERANCES)
def test_features_and_gradients_are_those_of_the_cpu(dtype):
    features, gradients = gpu_equality.branch_difference(dtype, "cuda")
    assert features <= gpu_equality.BRANCH_TOLERANCES[dtype]
    assert gradients <= gpu_equality.BRANCH_TOLERANCES[dtype]


def test_tf32_does_not_switch_the_fast_branch_off(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    clip = load_clip("tiny").cuda()
    encoder = PlainTextEncoder(clip)
    (fast,) = accelerate(encoder)
    tokens = tokenize(TEXTS)
    prompts = TextTower(clip).embed(tokens)
    for _ in range(2):
        encoder(prompts, tokens)
    assert fast.in_use


def test_the_block_loop_is_captured_in_a_graph():
    tower = TextTower(load_clip("tiny").cuda())
    tokens = tokenize(TEXTS)
    eot, n_shared = tokens.argmax(-1).tolist(), common_prefix(tokens)
    prompts = tower.embed(tokens)
    with torch.no_grad():
        want = tower.encode(prompts, eot, n_shared)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = tower.encode(prompts, eot, n_shared)
        graph.replay()
    torch.testing.assert_close(found, want)


def test_a_late_number_is_a_snapshot():
    value = torch.zeros((), device="cuda")
    numbers = []
    for step in range(100):
        value += step
        numbers.append(LateNumber(value))
    assert [float(number) for number in numbers] == [step * (step + 1) / 2 for step in range(100)]


def test_a_late_check_reads_its_last_flag():
    check = LateCheck(RuntimeError("changed"))
    check.expect(torch.tensor(False, device="cuda"))
    with pytest.raises(RuntimeError, match="changed"):
        settle_all()


def test_runs_of_an_experiment_are_forks_that_have_cuda():
    assert fork_server.context_of(CHECKOUT).get_start_method() == "forkserver"
    assert fork_server.in_fork(CHECKOUT, gpu_equality.branch_difference, "fp32", "cuda")
