"""The caption grammar: many random sentences for one scene, and fixed sentences as descriptions.

A caption is a noun phrase ("a red striped circle with parallel bands") in a sentence ("this is
a blurry photo of …"), sometimes with small talk before or after. The small talk trains late token
positions, which prompts with many soft tokens use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .scenes import Scene
from .vocabulary import COLOURS, DIGITS, FILLS, SHAPES, STYLES, Triple

_MEDIA = ("photo", "picture", "image", "drawing", "rendering", "painting")
_LARGE, _SMALL = ("large", "big", "huge"), ("small", "tiny", "little")

# Alternatives with their weights; {thing} is a noun phrase with an article, {bare} without.
_SHAPE_PHRASES = {
    "{colour} {fill} {shape}": 55,
    "{fill} {colour} {shape}": 10,
    "{colour} {shape} with {pattern}": 13,
    "{shape} that is {colour} with {pattern}": 8,
    "{fill} {shape} in {colour}": 6,
    "{colour} {shape}": 3,
    "{fill} {shape}": 3,
    "{shape}": 2,
}
_DIGIT_PHRASES = {
    "{digit}": 28,
    "digit {digit}": 14,
    "number {digit}": 14,
    "handwritten {digit}": 14,
    "handwritten digit {digit}": 14,
    "figure {digit}": 14,
}
_SENTENCES = {
    "{a_medium} of {thing}.": 60,
    "{thing}.": 6,
    "{bare}.": 8,
    "this is {a_medium} of {thing}.": 11,
    "{medium} of {thing}.": 10,
    "the {medium} shows {thing}.": 3,
    "there is {thing} in the {medium}.": 2,
    "we can see {thing} here.": 2,
    "{a_medium} in which we can see {thing}.": 2,
}
_BY_HAND = "someone wrote {thing} by hand."
_BEFORE = (
    "look at this:",
    "please look at this one:",
    "here we can see it at last:",
    "as you can see here,",
    "now look closely, because",
    "if you look closely, you will find",
    "what you are looking at is",
    "one of the many things on the table is",
    "in the middle of the page there is",
    "my friend made this for us and it is",
    "for a long time we wanted to show you this:",
    "it was sent to me yesterday, and it shows",
    "i do not know who made it, but it must be",
)
_BEHIND = (
    ", and nothing else.",
    ", i think.",
    " in front of us.",
    " that someone made for us.",
    " which was found in an old book.",
    ", as you would see at once.",
)


def _weighted(rng: random.Random, table: dict[str, int]) -> str:
    return rng.choices(list(table), list(table.values()))[0]


def _squeeze(text: str) -> str:
    """Remove the double blanks around empty words."""
    return " ".join(text.split())


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _medium(rng: random.Random, style: str, *, is_detailed: bool) -> str:
    share = 0.75 if is_detailed else 0.36
    said = rng.choice(STYLES[style]) if rng.random() < share else ""
    return _squeeze(f"{said} {rng.choice(_MEDIA)}")


def _usual(rng: random.Random, words: Sequence[str], usual: float) -> str:
    """Return the first of ``words`` or, with probability 1 - ``usual``, any of them."""
    return words[0] if rng.random() < usual else rng.choice(words)


def _shape_noun(rng: random.Random, scene: Scene, *, is_detailed: bool) -> str:
    fill = FILLS[scene.fill]
    unsaid = scene.fill == "solid" and rng.random() < 0.55
    phrase = _weighted(rng, _SHAPE_PHRASES).format(
        colour=_usual(rng, COLOURS[scene.colour].words, 0.5),
        fill="" if unsaid else _usual(rng, fill.adjectives, 0.55),
        shape=_usual(rng, SHAPES[str(scene.thing)], 0.6),
        pattern=rng.choice(fill.phrases),
    )
    is_sized = rng.random() < 0.25 or (is_detailed and rng.random() >= 0.5)
    size = rng.choice(_LARGE if scene.large else _SMALL) if is_sized else ""
    return _squeeze(f"{size} {phrase}")


def _digit_noun(rng: random.Random, scene: Scene, *, is_detailed: bool) -> str:
    number = int(scene.thing)
    said = DIGITS[number] if rng.random() < 0.75 else str(number)
    colour = scene.colour if rng.random() < (0.6 if is_detailed else 0.25) else ""
    return _squeeze(f"{colour} {_weighted(rng, _DIGIT_PHRASES).format(digit=said)}")


def _small_talk(rng: random.Random, sentence: str) -> str:
    if rng.random() < 0.2:
        sentence = f"{rng.choice(_BEFORE)} {sentence}"
        if rng.random() < 0.3:
            sentence = f"{rng.choice(_BEFORE)} {sentence}"
    if rng.random() < 0.06:
        sentence = sentence.removesuffix(".") + rng.choice(_BEHIND)
    return sentence


def caption(rng: random.Random, scene: Scene, *, is_detailed: bool = False) -> str:
    """Draw one of the many true sentences about ``scene``, in lower case.

    Args:
        rng: the source of the draw.
        scene: what the image shows.
        is_detailed: tell the style, the background, the size and a digit's colour more often.

    >>> scene = Scene("star", "red", "solid", True, "white", "clean")
    >>> caption(random.Random(1), scene) == caption(random.Random(1), scene)
    True
    """
    is_digit = isinstance(scene.thing, int)
    bare = (_digit_noun if is_digit else _shape_noun)(rng, scene, is_detailed=is_detailed)
    thing = f"the {bare}" if is_digit and rng.random() < 0.25 else _with_article(bare)
    if rng.random() < 0.18:
        thing += f" on {_with_article(scene.background)} background"
    medium = _medium(rng, scene.style, is_detailed=is_detailed)
    template = _BY_HAND if is_digit and rng.random() < 0.04 else _weighted(rng, _SENTENCES)
    sentence = template.format(
        bare=bare, thing=thing, medium=medium, a_medium=_with_article(medium)
    )
    sentence = _small_talk(rng, sentence)
    is_open = is_detailed and "background" not in sentence and rng.random() < 0.4
    if is_open and sentence.endswith("."):
        sentence = f"{sentence[:-1]} on {_with_article(scene.background)} background."
    return sentence


def vocabulary_text() -> list[str]:
    """Return all strings that captions are built from, to collect the tokens of captions."""
    words: list[str] = ["a an the background", " ".join(map(str, range(len(DIGITS)))), *DIGITS]
    words += [*_MEDIA, *_LARGE, *_SMALL, *_BEFORE, *_BEHIND, _BY_HAND]
    for named in (SHAPES, STYLES):
        words += [word for synonyms in named.values() for word in synonyms]
    words += [word for colour in COLOURS.values() for word in colour.words]
    words += [word for fill in FILLS.values() for part in fill for word in part]
    words += [*_SHAPE_PHRASES, *_DIGIT_PHRASES, *_SENTENCES]
    return [re.sub(r"\{\w+\}", " ", text) for text in words]


_SHAPE_DESCRIPTIONS = (
    "a photo of a {shape} that is {colour} with {pattern}.",
    "a picture of a {colour} {shape} with {pattern}.",
    "an image of a {fill} {shape} in {colour}.",
    "a drawing of a {colour} {fill} {shape}.",
    "this is a photo of a {fill} {colour} {shape}.",
    "there is a {colour} {shape} with {pattern} in the picture.",
    "a blurry photo of a {colour} {fill} {shape}.",
    "a large {colour} {fill} {shape}.",
    "a dark picture of a {fill} {shape} in {colour}.",
    "the image shows a {shape} that is {colour} with {pattern}.",
)
_DIGIT_DESCRIPTIONS = (
    "a photo of the handwritten digit {word}.",
    "a picture of a handwritten {figure}.",
    "someone wrote the number {word} by hand.",
    "a drawing of the number {word}.",
    "an image of the figure {word}.",
    "a white {word} on a black background.",
    "a blurry photo of a handwritten {word}.",
    "this is a low resolution image of a {figure}.",
    "a photo of the digit {figure}.",
    "the picture shows the number {figure}.",
)


def describe_shape(triple: Triple) -> list[str]:
    """Return ten sentences about a class of the shapes data set, each with other synonyms.

    >>> describe_shape(Triple("red", "striped", "circle"))[2]
    'an image of a striped round shape in scarlet.'
    """
    colours, shapes = COLOURS[triple.colour].words, SHAPES[triple.shape]
    adjectives, phrases = FILLS[triple.fill]
    sentences = []
    for i, template in enumerate(_SHAPE_DESCRIPTIONS):
        sentence = template.format(
            colour=colours[i % len(colours)],
            shape=shapes[i % len(shapes)],
            fill=adjectives[i % len(adjectives)],
            pattern=phrases[i % len(phrases)],
        )
        for vowel in "aeiou":
            sentence = sentence.replace(f" a {vowel}", f" an {vowel}")
        sentences.append(sentence)
    return sentences


def describe_digit(digit: int) -> list[str]:
    """Return ten sentences about a digit, 0 to 9.

    >>> describe_digit(3)[2]
    'someone wrote the number three by hand.'
    """
    return [template.format(word=DIGITS[digit], figure=digit) for template in _DIGIT_DESCRIPTIONS]
