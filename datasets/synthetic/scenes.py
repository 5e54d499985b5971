"""What is on a picture: as tensors for drawing many, as words for captioning one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .sampling import chance, integers
from .vocabulary import BENCHMARK, COLOURS, DIGITS, FILLS, SHAPES, STYLES, Triple

_COLOURS, _FILLS, _SHAPES, _STYLES = map(list, (COLOURS, FILLS, SHAPES, STYLES))
_WHITE, _BLACK = _COLOURS.index("white"), _COLOURS.index("black")
_CLEAN, _PIXELATED = _STYLES.index("clean"), _STYLES.index("pixelated")


@dataclass(frozen=True)
class Scene:
    """One picture in words: ``thing`` is a digit 0 to 9 or a shape's name."""

    thing: int | str
    colour: str
    fill: str
    large: bool
    background: str
    style: str


@dataclass(frozen=True)
class Scenes:
    """n pictures of digits, or n pictures of shapes, or both mixed: int64 tensors (n,).

    Attributes:
        digit: 0 to 9, or -1 where a shape is drawn.
        shape: index into ``SHAPES``, or -1 where a digit is drawn.
        colour, fill, background, style: indices into ``COLOURS``, ``FILLS``, ``STYLES``; digits
            have no fill and hold 0 there.
        large: 1 for a large shape, 0 for a small one or for a digit.
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
        """Put scenes one after the other."""
        return Scenes(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes))
        )

    def kind(self) -> Tensor:
        """(n,) int64: equal for two pictures exactly if they show the same digit, or the same
        colour, fill and shape."""
        triple = (self.colour * len(_FILLS) + self.fill) * len(_SHAPES) + self.shape
        return torch.where(self.digit < 0, triple, -1 - self.digit)

    def words(self) -> list[Scene]:
        """The same in words, one ``Scene`` a picture."""
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
    """A third of the pictures get the style ``often``, the others any."""
    style = integers(generator, n, 0, len(_STYLES))
    return torch.where(chance(generator, n, 0.35), often, style)


def _index(triples: Sequence[Triple]) -> Tensor:
    """(n, 3) indices of colour, fill and shape."""
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
    """``n`` scenes of shapes in any colour and fill, never one of the benchmark's triples."""
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
    """``n`` scenes of digits; a good part of them white on black or coarse, as scans are."""
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
    """Clean scenes of the 48 held-out triples, class by class.

    Args:
        generator: draws backgrounds and sizes.
        per_class: pictures of every class.
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
