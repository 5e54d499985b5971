"""Digits drawn by a wobbly pen: strokes, their distortion, and pixel distances to the strokes.

A digit is a few poly-lines in the box [-1, 1] with y pointing down; most digits have two or three
forms. No font and no real handwriting is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .sampling import each, uniform

_POINTS = 18  # per stroke, after resampling at equal steps


def _line(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float32)


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float
) -> Tensor:
    """Return an arc of an ellipse from ``start`` to ``stop`` degrees; 0 is right, 90 is down."""
    angle = torch.linspace(math.radians(start), math.radians(stop), 20)
    x = centre[0] + radii[0] * torch.cos(angle)
    y = centre[1] + radii[1] * torch.sin(angle)
    return torch.stack([x, y], dim=1)


def _join(*pieces: Tensor) -> Tensor:
    return torch.cat(pieces)


# For every digit its forms, for every form its strokes.
_STROKES: tuple[tuple[tuple[Tensor, ...], ...], ...] = (
    ((_arc((0, 0), (0.6, 0.9), -90, 270),),),
    (
        (_line((0, -0.9), (0, 0.9)),),
        (_line((-0.35, -0.5), (0.05, -0.9), (0.05, 0.9)),),
        (_line((-0.35, -0.5), (0.05, -0.9), (0.05, 0.9)), _line((-0.4, 0.9), (0.45, 0.9))),
    ),
    (
        (_join(_arc((0, -0.4), (0.55, 0.5), -170, 30), _line((-0.6, 0.88), (0.65, 0.88))),),
        (
            _join(
                _arc((0, -0.45), (0.5, 0.45), -180, 40),
                _line((-0.15, 0.5)),
                _arc((-0.35, 0.65), (0.22, 0.2), -60, -350),
                _line((0.6, 0.85)),
            ),
        ),
    ),
    (
        (
            _join(
                _arc((-0.05, -0.45), (0.5, 0.43), -150, 80),
                _arc((-0.05, 0.42), (0.6, 0.47), -85, 150),
            ),
        ),
        (
            _join(
                _line((-0.5, -0.88), (0.45, -0.88), (-0.05, -0.15)),
                _arc((-0.05, 0.4), (0.58, 0.5), -80, 150),
            ),
        ),
    ),
    (
        (_line((0.2, -0.9), (-0.6, 0.25), (0.65, 0.25)), _line((0.3, -0.3), (0.3, 0.9))),
        (_line((-0.5, -0.85), (-0.55, 0.05), (0.5, 0.05)), _line((0.45, -0.8), (0.4, 0.9))),
    ),
    (
        (
            _join(
                _line((0.55, -0.88), (-0.4, -0.88), (-0.48, -0.1)),
                _arc((-0.02, 0.32), (0.56, 0.52), -130, 140),
            ),
        ),
    ),
    (
        (
            _join(
                _arc((0.55, 0.3), (1.05, 1.2), -95, -180),
                _arc((0, 0.4), (0.5, 0.48), 180, -180),
            ),
        ),
    ),
    (
        (_line((-0.6, -0.85), (0.6, -0.85), (-0.1, 0.9)),),
        (
            _line((-0.6, -0.85), (0.6, -0.85), (-0.1, 0.9)),
            _line((-0.3, 0.05), (0.5, 0.05)),
        ),
    ),
    (
        (
            _arc((0, -0.45), (0.42, 0.43), 90, 450),
            _arc((0, 0.45), (0.54, 0.45), -90, 270),
        ),
    ),
    (
        (_join(_arc((0, -0.4), (0.5, 0.48), 10, 370), _line((0.45, 0.1), (0.3, 0.9))),),
        (
            _join(
                _arc((0, -0.4), (0.5, 0.48), 0, 360),
                _line((0.5, 0.3)),
                _arc((0, 0.4), (0.5, 0.48), 20, 120),
            ),
        ),
    ),
)


def _resample(stroke: Tensor) -> Tensor:
    """Return ``_POINTS`` points at equal steps along a poly-line (n, 2)."""
    travelled = torch.cat([torch.zeros(1), stroke.diff(dim=0).norm(dim=1).cumsum(0)])
    wanted = torch.linspace(0, float(travelled[-1]), _POINTS)
    after = torch.searchsorted(travelled, wanted, right=True).clamp(1, len(travelled) - 1)
    before = after - 1
    weight = (wanted - travelled[before]) / (travelled[after] - travelled[before] + 1e-9)
    return torch.lerp(stroke[before], stroke[after], weight.clamp(0, 1)[:, None])


def _segments(strokes: tuple[Tensor, ...]) -> Tensor:
    """Return the line segments of a digit, (2 * (_POINTS - 1), 2 ends, 2).

    A single stroke is padded by copies of its last segment, which change no distance.
    """
    points = [_resample(stroke) for stroke in strokes]
    segments = torch.cat([torch.stack([p[:-1], p[1:]], dim=1) for p in points])
    missing = 2 * (_POINTS - 1) - len(segments)
    return torch.cat([segments, segments[-1:].expand(missing, 2, 2)])


_FORMS = torch.stack([_segments(strokes) for forms in _STROKES for strokes in forms])
_N_FORMS = torch.tensor([len(forms) for forms in _STROKES])
_FIRST_FORM = _N_FORMS.cumsum(0) - _N_FORMS


def _distort(segments: Tensor, generator: torch.Generator) -> Tensor:
    """Give every digit another handwriting: wobble, stretch, shear, turn, resize and shift.

    ``segments`` and the result are (n, segments, 2 ends, 2).
    """
    n = len(segments)
    x, y = segments.unbind(-1)

    def normal(std: float) -> Tensor:
        return each(torch.randn(n, generator=generator) * std)

    def wave(along: Tensor, frequency: float) -> Tensor:
        phase = each(uniform(generator, n, 0, 2 * math.pi))
        return normal(0.09) * torch.sin(frequency * along + phase)

    x, y = x + wave(y, 2.2) + wave(x, 2.0), y + wave(x, 2.2) + wave(y, 2.0)
    x = x * torch.exp(normal(0.16)) + y * normal(0.15)
    angle = normal(0.14)
    x, y = (
        x * torch.cos(angle) - y * torch.sin(angle),
        x * torch.sin(angle) + y * torch.cos(angle),
    )
    size = each(uniform(generator, n, 0.6, 0.98))
    shift_x, shift_y = (
        each(uniform(generator, n, -0.1, 0.1)),
        each(uniform(generator, n, -0.1, 0.1)),
    )
    return torch.stack([x * size + shift_x, y * size + shift_y], dim=-1)


def digit_distances(digit: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Write one digit for each image, and return the distance of every pixel to the pen's track.

    Args:
        digit: (n,) integers 0 to 9.
        x, y: (height, width) float coordinates in [-1, 1], right and down.
        generator: the source of handwritings.

    Returns:
        (n, height, width) float distances, 0 on the track.
    """
    draw = torch.rand(len(digit), generator=generator)
    form = _FIRST_FORM[digit] + (draw * _N_FORMS[digit]).long()
    start, end = _distort(_FORMS[form], generator).unbind(2)
    pixels = torch.stack([x, y], dim=-1).view(1, -1, 2)
    squared = torch.full((len(digit), pixels.shape[1]), torch.inf)
    for a, b in zip(start.unbind(1), end.unbind(1), strict=True):  # (n, 2) each, to save memory
        track, away = (b - a)[:, None], pixels - a[:, None]
        along = (away * track).sum(-1) / ((track * track).sum(-1) + 1e-6)
        nearest = away - track * along.clamp(0, 1)[..., None]
        squared = torch.minimum(squared, (nearest * nearest).sum(-1))
    return squared.sqrt().view(len(digit), *x.shape)
