"""The vocabulary of the synthetic images: things to draw, with their names and synonyms.

The first word for a thing is its name in class names and prompts; captions also use the other
words. All other modules here index these tables by position, so the order is part of the data
sets: append, never reorder.
"""

from __future__ import annotations

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour: its mean RGB in [0, 1] and its words, the name first."""

    rgb: tuple[float, float, float]
    words: tuple[str, ...]


class Fill(NamedTuple):
    """The fill of a shape: adjectives ("striped"), and phrases that follow "with"."""

    adjectives: tuple[str, ...]
    phrases: tuple[str, ...]


class Triple(NamedTuple):
    """A class of the shapes data set; ``str()`` returns the class name.

    >>> str(Triple("red", "striped", "circle"))
    'red striped circle'
    """

    colour: str
    fill: str
    shape: str

    def __str__(self) -> str:
        return " ".join(self)


SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box", "four-sided shape"),
    "triangle": ("triangle", "three-sided shape"),
    "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop", "donut"),
    "heart": ("heart", "love symbol"),
    "diamond": ("diamond", "rhombus"),
    "hexagon": ("hexagon", "six-sided shape"),
    "crescent": ("crescent", "moon"),
    "arrow": ("arrow", "pointer"),
    "oval": ("oval", "ellipse"),
    "pentagon": ("pentagon", "five-sided shape"),
    "semicircle": ("semicircle", "half circle", "dome"),
}

COLOURS: dict[str, Colour] = {
    "black": Colour((0.08, 0.08, 0.08), ("black", "jet black")),
    "blue": Colour((0.15, 0.25, 0.85), ("blue", "navy", "azure")),
    "brown": Colour((0.45, 0.27, 0.12), ("brown", "chocolate")),
    "cyan": Colour((0.15, 0.80, 0.85), ("cyan", "turquoise")),
    "gray": Colour((0.50, 0.50, 0.50), ("gray", "grey", "silver")),
    "green": Colour((0.13, 0.62, 0.20), ("green", "emerald")),
    "orange": Colour((0.96, 0.55, 0.10), ("orange", "tangerine")),
    "pink": Colour((0.97, 0.55, 0.75), ("pink", "rose")),
    "purple": Colour((0.50, 0.15, 0.65), ("purple", "violet")),
    "red": Colour((0.86, 0.12, 0.13), ("red", "crimson", "scarlet")),
    "white": Colour((0.96, 0.96, 0.96), ("white", "ivory")),
    "yellow": Colour((0.95, 0.88, 0.15), ("yellow", "golden")),
}

FILLS: dict[str, Fill] = {
    "solid": Fill(("solid", "plain", "filled"), ("a solid fill", "no pattern")),
    "striped": Fill(("striped", "banded"), ("stripes", "parallel bands")),
    "dotted": Fill(("dotted", "spotted"), ("dots", "spots", "polka dots")),
    "checkered": Fill(("checkered", "chequered"), ("a checkered pattern", "checks")),
    "hollow": Fill(("hollow", "outlined"), ("only an outline", "an empty middle")),
}

STYLES: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "sharp", "good", ""),
    "blurry": ("blurry", "out of focus", "fuzzy"),
    "noisy": ("noisy", "grainy"),
    "dark": ("dark", "dim"),
    "pixelated": ("pixelated", "low resolution"),
}
"""Camera styles, and the words before "photo" in captions; "" adds no word."""

DIGITS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

# Four triples of every colour, chosen once at random. Pre-training never shows them, so a model
# that recognises them has combined colour, fill and shape itself.
_HELD_OUT: dict[str, tuple[str, ...]] = {
    "black": ("checkered semicircle", "dotted heart", "dotted oval", "striped crescent"),
    "blue": ("checkered heart", "hollow arrow", "striped cross", "striped star"),
    "brown": ("checkered crescent", "dotted crescent", "striped heart", "striped star"),
    "cyan": ("checkered cross", "striped ring", "striped semicircle", "striped triangle"),
    "gray": ("dotted pentagon", "dotted semicircle", "dotted square", "striped cross"),
    "green": ("checkered diamond", "dotted semicircle", "striped ring", "striped star"),
    "orange": ("checkered hexagon", "dotted circle", "hollow arrow", "striped diamond"),
    "pink": ("checkered crescent", "checkered hexagon", "checkered pentagon", "striped star"),
    "purple": ("checkered crescent", "dotted circle", "dotted oval", "striped star"),
    "red": ("checkered diamond", "hollow pentagon", "striped hexagon", "striped triangle"),
    "white": ("checkered heart", "dotted cross", "dotted pentagon", "striped crescent"),
    "yellow": ("checkered diamond", "checkered hexagon", "dotted ring", "striped diamond"),
}

BENCHMARK: tuple[Triple, ...] = tuple(
    Triple(colour, *name.split()) for colour, names in _HELD_OUT.items() for name in names
)
"""The 48 classes of the shapes data set, in label order; the first 24 are the base classes."""
