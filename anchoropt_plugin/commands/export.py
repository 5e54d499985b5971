"""Write the model of a run to a file that is used without this package and without the trainer.

    python -m anchoropt_plugin export --model-dir output/base --output weights.safetensors
    python -m anchoropt_plugin export --model-dir output/base --output model.onnx \\
        --classes "red fox" badger

A file that ends in .safetensors or .npz holds class weights for CLIP's image features; .onnx holds
a program from images to probabilities. The run's trainer must be registered, as for `predict`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training.predictor import check_suffix
from .predict import add_model_arguments, loaded_predictor

HELP = "write the model of a run to a file that needs no trainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_arguments(parser)
    parser.add_argument(
        "--output", required=True, help="file to write: .safetensors, .npz or .onnx"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file.

    Raises:
        UserError: see ``load_predictor`` and ``Predictor.export``.
    """
    check_suffix(Path(args.output))
    # On the CPU the model is in float32, also if it was trained in half precision.
    predictor = loaded_predictor(args, device="cpu")
    wrote = "Replaced" if Path(args.output).exists() else "Wrote"
    predictor.export(args.output)
    print(f"{wrote} {args.output}: {len(predictor.classes)} classes")
    return 0
