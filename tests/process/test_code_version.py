"""The version of the package, and the commit of the clone that it runs from."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from anchoropt_plugin.process.code_version import package_version
from anchoropt_plugin.version import VERSION

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(folder, *words):
    of_author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *of_author, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_of_a_clone_and_its_changes_are_told(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    file = tmp_path / "site-packages/file"
    file.parent.mkdir()
    file.write_text("1")
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text("1")
    assert package_version(tmp_path) == VERSION  # there is no commit yet
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert package_version(tmp_path) == f"{VERSION} (commit {commit})"
    page.write_text("2")
    assert package_version(tmp_path) == f"{VERSION} (commit {commit})"
    file.write_text("2")
    assert package_version(tmp_path) == f"{VERSION} (commit {commit}-dirty)"
    assert package_version(file.parent) == VERSION  # installed in the repository of another project
    monkeypatch.setenv("PATH", "")
    assert package_version(tmp_path) == VERSION  # git is not installed
