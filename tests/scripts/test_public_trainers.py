"""The table of public trainers: which trainers a checkout has, and what ``check`` says of them."""

from __future__ import annotations

import subprocess

import pytest

from scripts import public_trainers

TRAINER = """
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
        "trainers/one.py": TRAINER.format(name="One", body="self.model = None"),
        "trainers/broken.py": "def f(:",
        "trainers/.hidden/one.py": TRAINER.format(name="One", body="self.model = None"),
        "Dassl.pytorch/dassl/engine/own.py": TRAINER.format(name="Own", body="self.model = None"),
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


def test_each_trainer_is_tried_in_the_folder_of_its_train_py(checkout, tmp_path, capsys):
    table = tmp_path / "table.md"
    assert public_trainers.main([str(checkout), "--markdown", str(table)]) == 0
    head = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    first, second = table.read_text().partition("| --- |\n")[2].splitlines()
    assert first.startswith(f"| owner/name | {commit} | One | One has no prompt learner: ")
    assert second.startswith(f"| owner/name | {commit} | Two | Two without AnchorOPT fails")
    assert "trainers/two.py:7: AttributeError: NO_SUCH_KEY" in second
    assert str(tmp_path) not in table.read_text()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_repository_gets_its_own_words(checkout, monkeypatch):
    seen = []

    def run(command, **how):
        seen.append((command[command.index("check") + 1 :], how["cwd"]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(public_trainers.subprocess, "run", run)
    words = {"all": ["A.B", 1], "Two": ["C", 0.5]}
    specs = list(public_trainers.trainers_in(checkout))
    found = [public_trainers._check(*spec, words, 1) for spec in specs]
    assert found == [public_trainers.RIGHT] * 2
    assert seen == [
        (["trainers.one:One", "A.B", "1"], checkout),
        (["trainers.two:Two", "C", "0.5"], checkout / "older"),
    ]
