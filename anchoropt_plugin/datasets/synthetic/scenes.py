"""Scenes, the content of images: as tensors for drawing many, as words for one caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .sampling import chance, integers
from .vocabulary import BENCHMARK, COLOURS, DIGITS, FILLS, SHAPES, STYLES, Triple

_COLOURS, _FILLS, _SHAPES, _STYLES = (list(words) for words in (COLOURS, FILLS, SHAPES, STYLES))
_WHITE, _BLACK = _COLOURS.index("white"), _COLOURS.index("black")
_CLEAN, _PIXELATED = _STYLES.index("clean"), _STYLES.index("pixelated")


@dataclass(frozen=True)
class Scene:
    """The scene of one image in words; ``thing`` is a digit 0 to 9 or a shape's name."""

    thing: int | str
    colour: str
    fill: str
    large: bool
    background: str
    style: str


@dataclass(frozen=True)
class Scenes:
    """The scenes of n images of digits, shapes or both, as int64 tensors (n,).

    Attributes:
        digit: 0 to 9, or -1 for a shape.
        shape: the index in ``SHAPES``, or -1 for a digit.
        colour, fill, background, style: the indices in ``COLOURS``, ``FILLS``, ``COLOURS`` and
            ``STYLES``; the fill of a digit is 0.
        large: 1 for a large shape, 0 for a small shape or a digit.
    """

    digit: Tensor
    shape: Tensor
    colour: Tensor
    fill: Tensor
    large: Tensor
    background: Tensor
    style: Tensor

    def __len__(self) -> int:
        return len(self.digit)

    def __getitem__(self, rows: Tensor) -> Scenes:
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Scenes]) -> Scenes:
        """Return several ``Scenes`` as one."""
        return Scenes(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes))
        )

    def kind(self) -> Tensor:
        """Return (n,) int64 numbers, one for each digit and for each colour, fill and shape."""
        triple = (self.colour * len(_FILLS) + self.fill) * len(_SHAPES) + self.shape
        return torch.where(self.digit < 0, triple, -1 - self.digit)

    def words(self) -> list[Scene]:
        """Return one ``Scene`` for each image."""
        columns = [getattr(self, field.name).tolist() for field in fields(self)]
        return [
            Scene(
                thing=_SHAPES[shape] if digit < 0 else digit,
                colour=_COLOURS[colour],
                fill=_FILLS[fill],
                large=bool(large),
                background=_COLOURS[background],
                style=_STYLES[style],
            )
            for digit, shape, colour, fill, large, background, style in zip(*columns, strict=True)
        ]


def _another_colour(generator: torch.Generator, colour: Tensor) -> Tensor:
    return (colour + integers(generator, len(colour), 1, len(_COLOURS))) % len(_COLOURS)


def _styles(generator: torch.Generator, n: int, often: int) -> Tensor:
    """Draw styles: ``often`` for a third of the images, any style for the others."""
    style = integers(generator, n, 0, len(_STYLES))
    return torch.where(chance(generator, n, 0.35), often, style)


def _index(triples: Sequence[Triple]) -> Tensor:
    """Return (n, 3) indices of colour, fill and shape."""
    return torch.tensor(
        [(_COLOURS.index(t.colour), _FILLS.index(t.fill), _SHAPES.index(t.shape)) for t in triples]
    )


_TRAINED = _index(
    [
        triple
        for colour in COLOURS
        for fill in FILLS
        for shape in SHAPES
        if (triple := Triple(colour, fill, shape)) not in BENCHMARK
    ]
)


def sample_shapes(generator: torch.Generator, n: int) -> Scenes:
    """Draw ``n`` scenes of shapes in any colour and fill, but no benchmark triple."""
    colour, fill, shape = _TRAINED[integers(generator, n, 0, len(_TRAINED))].unbind(1)
    return Scenes(
        digit=torch.full((n,), -1),
        shape=shape,
        colour=colour,
        fill=fill,
        large=integers(generator, n, 0, 2),
        background=_another_colour(generator, colour),
        style=_styles(generator, n, often=_CLEAN),
    )


def sample_digits(generator: torch.Generator, n: int) -> Scenes:
    """Draw ``n`` scenes of digits, many of them white on black or coarse, like scans."""
    colour = integers(generator, n, 0, len(_COLOURS))
    background = _another_colour(generator, colour)
    scan = chance(generator, n, 0.4)
    return Scenes(
        digit=integers(generator, n, 0, len(DIGITS)),
        shape=torch.full((n,), -1),
        colour=torch.where(scan, _WHITE, colour),
        fill=torch.zeros(n, dtype=torch.long),
        large=torch.zeros(n, dtype=torch.long),
        background=torch.where(scan, _BLACK, background),
        style=_styles(generator, n, often=_PIXELATED),
    )


def benchmark_scenes(
    generator: torch.Generator, per_class: int, large: float
) -> tuple[Scenes, Tensor]:
    """Draw clean scenes of the 48 held-out triples, class by class.

    Args:
        generator: the source of backgrounds and sizes.
        per_class: the number of images of every class.
        large: the share of large shapes, 0 to 1.

    Returns:
        The 48 * per_class scenes, and their labels (48 * per_class,) int64.
    """
    label = torch.arange(len(BENCHMARK)).repeat_interleave(per_class)
    colour, fill, shape = _index(BENCHMARK)[label].unbind(1)
    scenes = Scenes(
        digit=torch.full_like(label, -1),
        shape=shape,
        colour=colour,
        fill=fill,
        large=chance(generator, len(label), large).long(),
        background=_another_colour(generator, colour),
        style=torch.full_like(label, _CLEAN),
    )
    return scenes, label
