"""Class descriptions, the targets of stage 1: from a json file, or from templates."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..encoders.class_names import as_words
from ..errors import UserError, nearest
from ..files.readers import each_key_once

_Sentences = TypeVar("_Sentences", bound=Sequence[str])

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "a close photo of a {}.",
    "a blurry photo of a {}.",
    "a dark photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "this is a photo of a {}.",
)

_PLACEHOLDER = re.compile(
    r"\{\w*\}|[\[<](?:class|(?:class[ _]?)?name|label)[\]>]|%s\b", re.IGNORECASE
)


def plain(name: str) -> str:
    """Return a class name in lower case, ``_`` as a blank: files differ in both.

    >>> plain("Golden_Retriever")
    'golden retriever'
    """
    return " ".join(as_words(name).lower().split())


def from_templates(class_names: Sequence[str], limit: int) -> list[list[str]]:
    """Return up to ``limit`` sentences for each class, made from its name.

    >>> from_templates(["red_panda"], limit=2)
    [['a photo of a red panda.', 'a picture of a red panda.']]
    """
    names = [as_words(name) for name in class_names]
    return [[template.format(name) for template in TEMPLATES[:limit]] for name in names]


def load(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a json ``{class name: [sentence, …], …}``.

    Raises:
        UserError: the file is missing, or of another form.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=each_key_once)
    except OSError as error:
        raise UserError(f"cannot read the descriptions {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the descriptions {path} are not valid json: {error}") from error
    is_dict = isinstance(content, dict)
    wrong = [name for name, value in content.items() if not _is_sentences(value)] if is_dict else []
    if wrong or not is_dict:
        of = f", but not that of {wrong[0]!r}" if wrong else ""
        raise UserError(
            f"the descriptions {path} are not of the form {{class name: [sentence, …], …}}: "
            f"every value is a list of sentences{of}"
        )
    for name, sentences in content.items():
        for sentence in sentences:
            if sign := placeholder(sentence, name):
                raise UserError(
                    f"the descriptions {path} hold a template, {sentence!r}: write the name of the "
                    f"class in place of {sign}"
                )
    return dict(content)


def _is_sentences(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(s, str) and s.strip() for s in value)


def placeholder(sentence: str, name: str) -> str:
    """Return what stands in place of a class name in ``sentence``, or an empty string.

    >>> placeholder("a photo of a {name}.", "red fox"), placeholder("a cat [sitting].", "cat")
    ('{name}', '')
    """
    found = (match.group() for match in _PLACEHOLDER.finditer(sentence))
    return next((sign for sign in found if sign not in name), "")


def read(path: str | os.PathLike[str], class_names: Sequence[str], limit: int) -> list[list[str]]:
    """Return the first ``limit`` sentences of each class in a json ``{name: [sentence, …], …}``.

    A name in the file may differ in case and in ``_`` for a blank; further classes are ignored.
    Templates never replace the descriptions of single classes: stage 1 would silently learn from
    two kinds of texts.

    Raises:
        UserError: the file is missing or of another form, a class is there twice, or classes (all
            are named) have no sentence.
    """
    return [sentences[:limit] for sentences in of_classes(load(path), class_names, str(path))]


def of_classes(
    content: Mapping[str, _Sentences], class_names: Sequence[str], source: str
) -> list[_Sentences]:
    """Return the sentences of each class in ``{name: [sentence, …], …}``, in the classes' order.

    A name may differ in case and in ``_`` for a blank; further classes are ignored.

    Raises:
        UserError: a class is there twice, a key is no text, or classes (all are named) have no
            sentence; ``source`` names the origin of the descriptions.

    >>> of_classes({"Red_Fox": ["a fox."], "cat": ["a cat."]}, ["cat", "red fox"], "example")
    [['a cat.'], ['a fox.']]
    """
    names: dict[str, str] = {}
    for name in content:
        if not isinstance(name, str):
            raise UserError(f"{source} has the key {name!r}: give class names, which are texts")
        other = names.setdefault(plain(name), name)
        if other != name:
            raise UserError(
                f"{source} has one class twice, as {other!r} and {name!r}: join the two"
            )
    sentences_of = {plain(name): sentences for name, sentences in content.items()}
    missing = [name for name in class_names if not sentences_of.get(plain(name))]
    if missing:
        others = names.keys() - {plain(name) for name in class_names}
        raise UserError(
            f"{source} has no description of {len(missing)} of {len(class_names)} classes "
            f"({', '.join(missing)}){nearest(missing[0], others)}: add them, or use templates for "
            "all classes (no descriptions file)"
        )
    return [sentences_of[plain(name)] for name in class_names]
