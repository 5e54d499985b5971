"""Ask a language model for class descriptions, through OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...encoders.class_names import as_words
from ...errors import UserError
from ...files.atomic import write_text
from ...method import descriptions

if TYPE_CHECKING:
    import openai

TEMPLATE = (
    "What does a {name} look like in a photo? Answer with {count} different sentences of at most "
    '20 words, each on a line of its own, that each begin with "A photo of" and name the {name}. '
    "Write nothing else."
)
ATTEMPTS = 3
"""How often a class is asked for until an answer has enough sentences."""
_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def sentences_in(answer: str, count: int) -> list[str]:
    """Return ``count`` different sentences of an answer, one per line; none if it has fewer.

    Numbers, dashes, quotes and headings around the sentences are removed.

    >>> sentences_in('Sure:\\n1. "A red panda climbs."\\n\\n2. A red panda eats bamboo.', 2)
    ['A red panda climbs.', 'A red panda eats bamboo.']
    """
    lines = [_MARK.sub("", line).strip().strip('"“”*,') for line in answer.splitlines()]
    found = (line for line in lines if " " in line and not line.endswith(":"))
    sentences = list(dict.fromkeys(found))
    return sentences[:count] if len(sentences) >= count else []


def names_class(sentence: str, name: str) -> bool:
    """Whether all words of a class name are in a sentence.

    >>> names_class("A photo of red pandas.", "Red_Panda"), names_class("I am sorry.", "Red_Panda")
    (True, False)
    """
    text = descriptions.plain(sentence)
    return all(word in text for word in descriptions.plain(name).split())


class Malformed(Exception):
    """No answer for a class has enough sentences."""


@dataclass
class Descriptions:
    """A descriptions file that grows with each answer.

    Args:
        path: the file; descriptions in an existing file stay.
        count: the number of sentences for each class.

    Raises:
        UserError: an existing file that holds no descriptions.
    """

    path: Path
    count: int
    texts: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = descriptions.load(self.path) if self.path.exists() else {}

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the class names with fewer than ``count`` sentences, without duplicates."""
        done = {descriptions.plain(n) for n, s in self.texts.items() if len(s) >= self.count}
        wanted = {descriptions.plain(name): name for name in reversed(names)}
        return [name for key, name in reversed(wanted.items()) if key not in done]

    def of(self, name: str) -> list[str]:
        """Return the sentences of a class."""
        return self.texts[self._key(name)]

    def _key(self, name: str) -> str:
        """Return the name that a class has in the file, or ``name``."""
        key = descriptions.plain(name)
        return next((other for other in self.texts if descriptions.plain(other) == key), name)

    def add(self, name: str, sentences: Sequence[str]) -> None:
        """Add a class and write the file."""
        self.texts[self._key(name)] = list(sentences)
        write_text(self.path, json.dumps(self.texts, indent=1, ensure_ascii=False))


async def ask_for_all(
    client: openai.AsyncOpenAI,
    model: str,
    names: Sequence[str],
    into: Descriptions,
    template: str,
    at_once: int,
    on_class: Callable[[str, str], None],
) -> None:
    """Ask for the descriptions of classes; each answer is written to the file when it arrives.

    Args:
        client: a client that repeats failed requests, with growing pauses.
        model: the endpoint's name of the language model.
        names: the class names.
        into: the file of descriptions.
        template: the question, with ``{name}`` and ``{count}``.
        at_once: the number of simultaneous requests.
        on_class: a function called for each finished class, with the reason of a failure or "".

    Raises:
        UserError: an endpoint that cannot be reached, or that refuses such requests.
    """
    import openai

    temporary = Malformed, openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            question = template.format(name=as_words(name), count=into.count)
            try:
                into.add(name, await _answer(client, model, question, into.count))
            except temporary as error:
                on_class(name, _one_line(error))
            except openai.OpenAIError as error:
                raise UserError(f"{client.base_url}: {_one_line(error)}") from error
            else:
                on_class(name, "")

    workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:  # if one worker raises, the others stop
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(client: openai.AsyncOpenAI, model: str, question: str, count: int) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(ATTEMPTS):
        try:
            answer = await client.chat.completions.create(model=model, messages=messages)
        except ValueError as error:  # the body is not json
            text = _one_line(error)
            continue
        text = _text(answer)
        sentences = sentences_in(text, count)
        if sentences:
            return sentences
    raise Malformed(f"none of {ATTEMPTS} answers has {count} sentences; the last: {text[:80]!r}")


def _text(answer: Any) -> str:
    """Return the text of an answer, or "" for an answer of another form: openai does not check."""
    try:
        text = answer.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return ""
    return text if isinstance(text, str) else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
