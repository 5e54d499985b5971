"""Asking a language model for class descriptions, where it is served by OpenAI's protocol."""

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
from ...files.atomic import atomic_write
from ...method import descriptions

if TYPE_CHECKING:
    import openai

TEMPLATE = (
    "What does a {name} look like in a photo? Answer with {count} different sentences of at most "
    '20 words, each on a line of its own, that each begin with "A photo of" and name the {name}. '
    "Write nothing else."
)
MALFORMED = 3
"""How often a class is asked for again whose answer is not one."""
_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def sentences_in(answer: str, count: int) -> list[str]:
    """The sentences of an answer, a line each; nothing where there are fewer than ``count``.

    What models put around sentences is taken off: numbers, dashes, quotes, a heading.

    >>> sentences_in('Sure:\\n1. "A red panda climbs."\\n\\n2. A red panda eats bamboo.', 2)
    ['A red panda climbs.', 'A red panda eats bamboo.']
    """
    lines = [_MARK.sub("", line).strip().strip('"“”*') for line in answer.splitlines()]
    sentences = [line for line in lines if " " in line and not line.endswith(":")]
    return sentences[:count] if len(sentences) >= count else []


class Malformed(Exception):
    """The answers for a class were none."""


@dataclass
class Descriptions:
    """A descriptions file that grows, an answer at a time.

    Args:
        path: of the file; what it holds already is kept.
        count: sentences a class.

    Raises:
        UserError: it is there, but holds no descriptions.
    """

    path: Path
    count: int
    texts: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = descriptions.load(self.path) if self.path.exists() else {}

    def missing(self, names: Sequence[str]) -> list[str]:
        """The classes, each once, that have fewer than ``count`` sentences."""
        done = {descriptions.plain(n) for n, s in self.texts.items() if len(s) >= self.count}
        wanted = {descriptions.plain(name): name for name in reversed(names)}
        return [name for key, name in reversed(wanted.items()) if key not in done]

    def add(self, name: str, sentences: Sequence[str]) -> None:
        """Put a class in, and write the file, whole or not at all."""
        key = descriptions.plain(name)
        same = [other for other in self.texts if descriptions.plain(other) == key]
        self.texts[same[0] if same else name] = list(sentences)
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.texts, indent=1, ensure_ascii=False).encode())


async def ask_for_all(
    client: openai.AsyncOpenAI,
    model: str,
    names: Sequence[str],
    into: Descriptions,
    template: str,
    at_once: int,
    on_class: Callable[[str, str], None],
) -> None:
    """Ask for the descriptions of classes; each answer is in the file before the next is awaited.

    Args:
        client: it repeats what fails, with growing pauses, as often as it was made to.
        model: the endpoint's name of it.
        names: of the classes.
        into: takes the answers.
        template: the question, with ``{name}`` and ``{count}``.
        at_once: requests under way at a time.
        on_class: takes each class when it is over, and why it failed, or "".

    Raises:
        UserError: the endpoint cannot be reached, or refuses such requests.
    """
    import openai

    passing = Malformed, openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            question = template.format(name=as_words(name), count=into.count)
            try:
                into.add(name, await _answer(client, model, question, into.count))
            except passing as error:
                on_class(name, _says(error))
            except openai.OpenAIError as error:
                raise UserError(f"{client.base_url}: {_says(error)}") from error
            else:
                on_class(name, "")

    workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:  # where one raises, the others end
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(client: openai.AsyncOpenAI, model: str, question: str, count: int) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(MALFORMED):
        try:
            said = await client.chat.completions.create(model=model, messages=messages)
        except ValueError as error:  # its body is no json
            text = _says(error)
            continue
        text = _text(said)
        sentences = sentences_in(text, count)
        if sentences:
            return sentences
    raise Malformed(f"no answer of {MALFORMED} has {count} sentences; the last: {text[:80]!r}")


def _text(answer: Any) -> str:
    """What a model said; "" where the answer is not of that form, which openai does not check."""
    try:
        text = answer.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return ""
    return text if isinstance(text, str) else ""


def _says(error: Exception) -> str:
    return " ".join(str(error).split())
