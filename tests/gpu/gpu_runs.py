"""Whole runs on a pretend GPU: both stages, validation, resuming, new classes, prediction."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

import train
from anchoropt_plugin import AnchorPositionModule, load_predictor
from anchoropt_plugin.method.relaxations import RELAXATIONS
from benchmarks.pretend_gpu import GPUTensor, pretend_gpu

from .short_runs import (
    NODES,
    PRECISIONS,
    command,
    few_images,
    interrupted_and_resumed,
    recorded_losses,
)

# Autograd learns of the devices at its first backward pass.
with pretend_gpu():
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Of the data sets; evaluations take a part of their images."""
    with few_images():
        yield tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=list(NODES))
def host(request):
    return request.param


@pytest.fixture(scope="module")
def on_the_cpu(host, root, tmp_path_factory):
    """The losses of a run on the CPU, and the probabilities of an image."""
    folder = tmp_path_factory.mktemp("cpu")
    with recorded_losses() as losses:
        assert train.main(command(root, folder, host, "fp32")) == 0
    return losses, probabilities(folder)


def probabilities(folder):
    image = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    return load_predictor(folder).probabilities([image])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_gives_what_the_cpu_gives(precision, host, on_the_cpu, gpu, root, tmp_path, capsys):
    words = command(root, tmp_path, host, precision)
    losses, of_image = on_the_cpu
    found = interrupted_and_resumed(words)
    assert found.keys() == losses.keys() and len(losses) > 2
    for (epoch, batch), loss in losses.items():
        here = found[epoch, batch]
        if precision == "fp32":
            assert math.isclose(here, loss, rel_tol=5e-6, abs_tol=5e-6), (epoch, batch)
        else:  # later steps depend on what the first have rounded
            assert math.isfinite(here) and (epoch or math.isclose(here, loss, rel_tol=2e-2))
    # Under amp the towers run in half precision, the position matrix and stage 1 in float32.
    assert (torch.float16 in gpu.products) is (precision != "fp32")
    predicted = probabilities(tmp_path)
    assert torch.allclose(predicted.sum(-1), torch.ones(1))
    assert precision != "fp32" or torch.allclose(predicted, of_image, atol=5e-6)
    flags = ["--eval-only", "--model-dir", str(tmp_path), "--load-epoch", "2"]
    assert train.main(command(root, tmp_path, host, precision, flags, classes="new")) == 0
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
        assert torch.allclose(ours, want, atol=5e-6)


def test_classes_in_chunks_give_what_the_cpu_gives(gpu, root, tmp_path):
    found = []
    for name, keys in (("cpu", ["USE_CUDA", "False"]), ("gpu", [])):
        with recorded_losses() as losses:
            keys = [*keys, "TRAINER.ANCHOROPT.CLASS_CHUNK", "2", "TEST.NO_TEST", "True"]
            assert train.main(command(root, tmp_path / name, "CoOp", "fp32", keys=keys)) == 0
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=5e-6)
    assert gpu.launches
