"""Whole runs on a pretend GPU: both stages, validation, resuming, new classes, prediction."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

import train
from anchoropt_plugin import load_predictor
from anchoropt_plugin.method.position import RELAXATIONS, AnchorPositionModule
from benchmarks.pretend_gpu import GPUTensor, pretend_gpu

from .short_runs import NODES, PRECISIONS, command, interrupted_and_resumed, recorded_losses

# Autograd learns of the devices at its first backward pass.
with pretend_gpu():
    pass


@pytest.fixture(scope="module", params=list(NODES))
def host(request):
    return request.param


@pytest.fixture(scope="module")
def on_the_cpu(host, tmp_path_factory):
    """The losses of a run on the CPU, and the probabilities of an image."""
    folder = tmp_path_factory.mktemp("cpu")
    with recorded_losses() as losses:
        assert train.main(command(folder, host, "fp32")) == 0
    return losses, probabilities(folder)


def probabilities(folder):
    image = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    return load_predictor(folder / "out").probabilities([image])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_gives_what_the_cpu_gives(precision, host, on_the_cpu, gpu, tmp_path, capsys):
    words = command(tmp_path, host, precision)
    losses, of_image = on_the_cpu
    found = interrupted_and_resumed(words)
    assert found.keys() == losses.keys() and len(losses) > 2
    assert ("it cannot read" in capsys.readouterr().out) is False
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    for step, loss in losses.items():
        assert math.isclose(found[step], loss, rel_tol=tolerance, abs_tol=tolerance), step
    # Under amp the towers run in half precision, the position matrix and stage 1 in float32.
    assert (torch.float16 in gpu.products) is (precision != "fp32")
    assert torch.allclose(probabilities(tmp_path), of_image, atol=max(1e-6, tolerance))
    flags = ["--eval-only", "--model-dir", str(tmp_path / "out"), "--load-epoch", "2"]
    assert train.main(command(tmp_path, host, precision, flags, classes="new")) == 0
    assert "* accuracy: " in capsys.readouterr().out


@pytest.mark.parametrize("relaxation", list(RELAXATIONS))
def test_a_position_matrix_gives_what_the_cpu_gives(relaxation, gpu):
    outcomes = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        anchors = torch.randn(1, 8).to(device)
        module = AnchorPositionModule(4, anchors, relaxation=relaxation, init_std=1.0)
        context = torch.randn(4, 8).to(device).requires_grad_()
        out = module(context)
        out.square().sum().backward()
        assert isinstance(out, GPUTensor) is (device == "cuda")
        outcomes.append([x.detach().cpu() for x in (out, context.grad)])
    for ours, want in zip(*outcomes, strict=True):
        assert torch.allclose(ours, want, atol=1e-6)


def test_classes_in_chunks_give_what_the_cpu_gives(gpu, tmp_path):
    found = []
    for name, keys in (("cpu", ["USE_CUDA", "False"]), ("gpu", [])):
        with recorded_losses() as losses:
            keys = [*keys, "TRAINER.ANCHOROPT.CLASS_CHUNK", "2", "TEST.NO_TEST", "True"]
            assert train.main(command(tmp_path / name, "CoOp", "fp32", keys=keys)) == 0
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert gpu.launches
