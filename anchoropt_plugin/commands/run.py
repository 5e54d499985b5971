"""Run a repository's own, unchanged train.py with --trainer X_AnchorOPT, for any of its trainers X.

    python -m anchoropt_plugin run train.py --trainer CoOp_AnchorOPT ...

The repository stays unchanged. Give the keys of TRAINER.ANCHOROPT as KEY VALUE, like all others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ..dassl_compat.finite_checks import training_errors
from ..dassl_compat.utils.logger import lone_log_withdrawn
from ..errors import UserError
from ..process import distributed
from ..process.folder_lock import locked_folder
from ..training.settings import extend_cfg
from ..training.trainer_registry import two_stages_on_demand
from ..training.two_stages import SUFFIX

HELP = "run a repository's own train.py with --trainer X_AnchorOPT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("script", help="path of the train.py")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="flags and KEY VALUE pairs of the script",
    )
    parser.set_defaults(
        interrupted="interrupted; the same command resumes from its last checkpoint, if any"
    )


def run(args: argparse.Namespace) -> int:
    """Run the script as ``python script ...`` would; ``sys.exit`` in the script ends this command.

    Returns:
        0, or 1 if the script raised an exception of its own, whose trace is printed as usual.

    Raises:
        UserError: a missing script, or a ``UserError`` in the script.
    """
    script = Path(args.script)
    if not script.is_file():
        raise UserError(f"there is no script {script}: give the path of the repository's train.py")
    with (
        lone_log_withdrawn(),
        _in_place_of_python(script, args.arguments),
        two_stages_on_demand(),
        _offer_data_sets(),
        _keep_anchoropt_keys(),
        _lock_output_folder(),
    ):
        try:
            with training_errors():
                runpy.run_path(str(script), run_name="__main__")
            distributed.stop()
        except (UserError, BrokenPipeError):
            raise
        except Exception as error:
            # The script may have wrapped a UserError in an exception of its own.
            for cause in _causes(error):
                if isinstance(cause, UserError):
                    raise cause from None
            trace = _below_runpy(error)
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            return 1
    return 0


@contextlib.contextmanager
def _in_place_of_python(script: Path, arguments: list[str]) -> Iterator[None]:
    """Set ``sys.argv`` and ``sys.path[0]`` for the script, and let it import its own ``clip``."""
    folder = script.resolve().parent
    # The plug-in imported a clip before the script's folder was on the path; the script's own
    # clip, a fork, differs.
    loaded = getattr(sys.modules.get("clip"), "__file__", None)
    if (folder / "clip").is_dir() and loaded and folder not in Path(loaded).resolve().parents:
        for name in [name for name in sys.modules if name.partition(".")[0] == "clip"]:
            del sys.modules[name]
    with (
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", [str(folder), *sys.path[1:]]),
    ):
        yield


@contextlib.contextmanager
def _offer_data_sets() -> Iterator[None]:
    """Let the registry know this package's data sets too, where their names are free."""
    # Imported here: the other commands do not need what an installed Dassl imports for its data.
    from ..datasets import DATA_SETS

    registry: Any = importlib.import_module("dassl.data.datasets").DATASET_REGISTRY
    own_get, own_names = registry.get, registry.registered_names

    def get(name: str) -> Any:
        return own_get(name) if name in own_names() else DATA_SETS.get(name) or own_get(name)

    def registered_names() -> list[str]:
        return list(dict.fromkeys([*own_names(), *DATA_SETS]))

    # On the instance: others hold a reference to the registry.
    with mock.patch.multiple(registry, get=get, registered_names=registered_names):
        yield


@contextlib.contextmanager
def _keep_anchoropt_keys() -> Iterator[None]:
    """Let ``clean_cfg``, which keeps one trainer's keys, keep the host's and AnchorOPT's.

    The Dassl of some repositories has no ``clean_cfg``.
    """
    config: Any = importlib.import_module("dassl.config")
    clean_cfg = getattr(config, "clean_cfg", None)
    if clean_cfg is None:
        yield
        return

    def clean_but_keep(cfg: Any, trainer: str) -> None:
        clean_cfg(cfg, trainer.removesuffix(SUFFIX))
        extend_cfg(cfg)

    with mock.patch.object(config, "clean_cfg", clean_but_keep):
        yield


@contextlib.contextmanager
def _lock_output_folder() -> Iterator[None]:
    """Lock the output folder when the script sets up its log, the first file it writes.

    Without ``setup_logger``, in a Dassl that lacks it, the training locks the folder.
    """
    utils: Any = importlib.import_module("dassl.utils")
    setup_logger = getattr(utils, "setup_logger", None)
    if setup_logger is None:
        yield
        return
    with contextlib.ExitStack() as locks:

        def lock_and_set_up(output: str | None = None) -> None:
            if output is not None:
                is_file = output.endswith((".txt", ".log"))
                locks.enter_context(locked_folder(Path(output).parent if is_file else output))
            setup_logger(output)

        with mock.patch.object(utils, "setup_logger", lock_and_set_up):
            yield


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _below_runpy(error: BaseException) -> Any:
    """Return the part of the trace inside the script."""
    trace = error.__traceback__
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename in (__file__, *_RUNPY):
        trace = trace.tb_next
    return trace


_RUNPY = (runpy.__file__, "<frozen runpy>")
