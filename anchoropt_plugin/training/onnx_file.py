"""Write a model as ONNX, after its probabilities were compared with those of a test."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files.atomic import atomic_write
from .traced import Classifier, check_program, one_line


def import_onnx() -> tuple[Any, Any]:
    """Return the modules ``onnx`` and ``onnxruntime``.

    Raises:
        UserError: one of them is not installed.
    """
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            f"export to .onnx needs {error.name}: pip install 'anchoropt-plugin[export]'"
        ) from error


def write_onnx(
    model: nn.Module,
    tested: Classifier,
    images: Tensor,
    texts: Mapping[str, str],
    path: Path,
) -> None:
    """Write ``model``, images (B, 3, R, R) → probabilities (B, C) for any B, whole or not at all.

    Args:
        model: the model, on the CPU.
        tested: the probabilities that the file must give.
        images: a batch of three or more to compare with.
        texts: metadata of the file.
        path: the file.

    Raises:
        UserError: the model cannot be written as ONNX, or the file gives other probabilities.
    """
    onnx, onnxruntime = import_onnx()
    program = onnx.load_from_string(_exported(model, images[:2]))
    for key, text in texts.items():
        program.metadata_props.add(key=key, value=text)
    content = program.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error below says it
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def probabilities(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    check_program(probabilities, tested, images)
    with atomic_write(path) as file:
        file.write(content)


def _exported(model: nn.Module, images: Tensor) -> bytes:
    program = io.BytesIO()
    settings: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["probabilities"],
        "dynamic_axes": {"images": {0: "batch"}, "probabilities": {0: "batch"}},
    }
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # from torch 2.5
        settings["dynamo"] = False  # by tracing: what no image changes becomes a constant
    printed = io.StringIO()
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
        ):
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (images,), program, **settings)  # type: ignore[arg-type]
    except Exception as error:  # the tracer and each operator raise classes of their own
        raise UserError(f"the model cannot be written as ONNX: {one_line(error)}") from error
    return program.getvalue()
