"""The version of the code: the commit of a checkout, and this package's version with its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..version import VERSION


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout, or "" if it is unknown.

    It ends in ``-dirty`` if files differ from it, other than Markdown, which changes no number.
    """
    git = ["git", "-C", str(folder)]
    differs = [*git, "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)*.md"]
    try:
        words = [*git, "rev-parse", "HEAD"]
        commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        is_dirty = subprocess.run(differs, capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("-dirty" if is_dirty else "")


def package_version(root: Path = Path(__file__).parents[2]) -> str:
    """Return the version of this package, with the commit if ``root`` is a clone of it."""
    # Without a .git of its own, the folder of installed packages may lie in another repository.
    commit = commit_of(root) if (root / ".git").exists() else ""
    return f"{VERSION} (commit {commit})" if commit else VERSION
