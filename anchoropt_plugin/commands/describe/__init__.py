"""Ask a language model for the class descriptions of stage 1, and write them to a json file.

    python -m anchoropt_plugin describe --model gpt-4o-mini --output pets.json \\
        --dataset-config-file configs/datasets/oxford_pets.yaml --root DATA
    python -m anchoropt_plugin describe --base-url http://localhost:8000/v1 --model llama \\
        --output pets.json "red fox" badger

Any endpoint with OpenAI's protocol will do; OPENAI_API_KEY holds its key. Each answer is written
when it arrives. To ask for missing classes, run the same command again. Give the file to a run as
TRAINER.ANCHOROPT.DESCRIPTIONS.
"""

from __future__ import annotations

from .command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
