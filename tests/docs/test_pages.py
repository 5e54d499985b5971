"""The pages name only tests and commands that exist, and import from the package alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from anchoropt_plugin.experiments.factors import factors

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
EVERY_PAGE = pytest.mark.parametrize("page", TEXTS)


def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_guarantee_names_tests_that_exist() -> None:
    """A ``::test`` alone is in the file that was named last."""
    named = re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", TEXTS["docs/reliability.md"])
    files: list[Path] = []
    missing = []
    for file, test in named:
        if re.search(r"(^|/)(test|gpu)_", file):
            files.append(ROOT / "tests" / file)
            assert files[-1].is_file(), file
        if test and test not in functions_of(files[-1]):
            missing.append(f"{files[-1].name}::{test}")
    assert len(files) > 10
    assert not missing


@EVERY_PAGE
def test_files_and_folders_that_a_page_names_exist(page: str) -> None:
    tops = "anchoropt_plugin|benchmarks|configs|docs|scripts|tests|trainers"
    ours = re.sub(r"[\w/.]+:\d+:", "", TEXTS[page])  # "x.py:14:" is in an error of another project
    named = re.findall(rf"(?<![\w/.])(?:{tops})/[\w/.]*\w", ours)
    examples = {"configs/datasets/birds.yaml", "configs/trainers/MyCoOp/vit_b16.yaml"}
    there = {x for x in named for top in (ROOT, ROOT / "tests") if list(top.glob(f"{x}*"))}
    assert {*named} - there - examples == set()


@EVERY_PAGE
def test_a_page_imports_from_the_package_alone(page: str) -> None:
    assert not re.findall(r"(?:from|import) anchoropt_plugin\.\w+", TEXTS[page])


@EVERY_PAGE
def test_links_lead_to_files(page: str) -> None:
    """Sphinx checks the links of docs/, but not those of the pages at the top."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", TEXTS[page])
    folder = (ROOT / page).parent
    assert [link for link in links if not (folder / link).exists()] == []


@EVERY_PAGE
def test_a_page_has_no_sphinx_role_that_github_shows_as_text(page: str) -> None:
    assert not re.findall(r"\{\w+\}`", TEXTS[page].replace("```{", ""))


def test_the_table_of_factors_has_every_factor() -> None:
    """A row has the short name and the key of TRAINER.ANCHOROPT."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TEXTS["docs/experiments.md"], re.MULTILINE)
    known = {name: factor.key for name, factor in factors().items()}
    assert {name: f"TRAINER.ANCHOROPT.{key}" for name, key in rows} == known


def test_the_tree_in_contributing_has_every_folder() -> None:
    tree = TEXTS["CONTRIBUTING.md"].partition("## The tree")[2].partition("## The floors")[0]
    package = {f"  {x.parent.name}/" for x in ROOT.glob("anchoropt_plugin/*/__init__.py")}
    repository = {f"{x.parent.name}/" for x in ROOT.glob("*/__init__.py")}
    assert [folder for folder in package | repository if f"\n{folder} " not in tree] == []
