"""The table of public trainers: which trainers a checkout has, and what ``check`` says of them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from scripts import public_trainers

TRAINER = """
from torch import nn

from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    def build_model(self):
        {body}

class Helper: ...
"""


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with trainers in two folders, one in the other."""
    folder = tmp_path / "owner" / "name"
    files = {
        "train.py": "def extend_cfg(cfg): ...\n",
        "trainers/__init__.py": "",
        "trainers/one.py": TRAINER.format(name="One", body="self.model = nn.Identity()"),
        "trainers/broken.py": "def f(:",
        "trainers/.hidden/one.py": TRAINER.format(name="One", body="self.model = None"),
        "Dassl.pytorch/dassl/engine/own.py": TRAINER.format(name="Own", body="self.model = None"),
        "ipynb-checkpoints/one.py": TRAINER.format(name="Left", body="self.model = None"),
        "older/train.py": "def extend_cfg(cfg): ...\n",
        "older/trainers/two.py": TRAINER.format(name="Two", body="self.cfg.NO_SUCH_KEY"),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return folder


def commit_of(checkout):
    head = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()


def test_each_trainer_is_tried_in_the_folder_of_its_train_py(checkout, tmp_path, capsys):
    table = tmp_path / "table.md"
    assert public_trainers.main([str(checkout), "--markdown", str(table)]) == 0
    page, commit = table.read_text(), commit_of(checkout)
    assert (
        "Of 1 repositories 2 trainers were tried: 0 are right, 1 are\nrefused (1 of these" in page
    )
    refused, without, copies = page.split("## ")
    (row,) = refused.partition("| --- |\n")[2].strip().splitlines()
    assert row.startswith(f"| owner/name | {commit} | Two | Two without AnchorOPT fails")
    assert row.endswith(": trainers/two.py:9: AttributeError: NO_SUCH_KEY |")  # no advice
    assert without.endswith(f"| owner/name | {commit} | One | refused |\n\n")
    assert copies.endswith("| --- |\n")
    assert str(tmp_path) not in page
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture
def checks(monkeypatch):
    """The arguments and the folder of each `check`; all trainers are right."""
    seen = []

    def run(command, **how):
        if "check" in command:
            seen.append((command[command.index("check") + 1 :], how["cwd"]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(public_trainers.subprocess, "run", run)
    return seen


def test_a_repository_gets_its_own_words(checkout, checks, monkeypatch, tmp_path):
    words = tmp_path / "words.yaml"
    words.write_text("owner/name: {all: [A.B, 1], Two: [C, 0.5]}")
    monkeypatch.setattr(public_trainers, "WORDS", words)
    public_trainers.main([str(checkout)])
    assert checks == [
        (["trainers.two:Two", "C", "0.5"], checkout / "older"),
        (["trainers.one:One", "A.B", "1"], checkout),
    ]


def test_trainers_without_a_train_py_above_them_are_tried_in_the_checkout(checkout, checks):
    (checkout / "train.py").unlink()
    public_trainers.main([str(checkout), "--only", "One"])
    assert checks == [(["trainers.one:One"], checkout)]


def test_a_copied_file_is_not_tried_again(checkout, checks, tmp_path, capsys):
    copy = tmp_path / "other" / "copy"
    shutil.copytree(checkout, copy)
    (copy / "older/trainers/two.py").open("a").write("# changed\n")
    public_trainers.main([str(checkout), str(copy), str(checkout)])
    assert [folder for _, folder in checks] == [checkout / "older", checkout, copy / "older"]
    assert "other/copy |  | One | the same file as in owner/name" in (capsys.readouterr().out)


def test_results_in_the_file_of_rows_are_not_tried_again(checkout, checks, tmp_path, capsys):
    rows = tmp_path / "rows"
    for only in ("One", "Two", "One"):
        public_trainers.main([str(checkout), "--rows", str(rows), "--only", only])
    assert len(checks) == len(rows.read_text().splitlines()) == 2
    assert capsys.readouterr().out.splitlines()[2].endswith(public_trainers.RIGHT)
