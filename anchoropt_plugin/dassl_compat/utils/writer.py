"""TensorBoard's writer, or a replacement if TensorBoard is not installed."""

from __future__ import annotations

from typing import Any

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:

    class SummaryWriter:  # type: ignore[no-redef]
        """A writer that writes nothing, and prints a note once."""

        def __init__(self, log_dir: str) -> None:
            print(
                f"No scalars are written to {log_dir}: TensorBoard is missing "
                "(pip install tensorboard)"
            )

        def add_scalar(self, *args: Any, **kwargs: Any) -> None:
            """Ignore a scalar."""

        def add_image(self, *args: Any, **kwargs: Any) -> None:
            """Ignore an image."""

        def close(self) -> None:
            """Do nothing."""


__all__ = ["SummaryWriter"]
