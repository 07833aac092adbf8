# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws accuracy against the area of boxes, as SVG text that is the same every time."""

from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[float, float, float]]  # score and the ends of its interval, by factor
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 50, 110, 20, 45
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # which people who are colour-blind tell apart
LABEL_HEIGHT = 16


def draw_curves(
    factors: Sequence[float], curves: Mapping[str, Curve], names: Mapping[str, str]
) -> str:
    """An SVG of the curves with their intervals as bands.

    Args:
        factors: of the boxes' areas, increasing.
        curves: at most three, by name.
        names: what to write beside each curve.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="DejaVu Sans, Arial, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *axes(factors),
    ]
    colours = dict(zip(curves, COLOURS, strict=False))
    place = 0.0
    for name in sorted(curves, key=lambda name: -curves[name][-1][0]):
        place = max(place + LABEL_HEIGHT, y_of(curves[name][-1][0]) + 4)
        parts += [
            *band_and_line(curves[name], colours[name]),
            f'<text x="{WIDTH - RIGHT + 8}" y="{place:.1f}" fill="{colours[name]}" '
            f'font-weight="bold">{names[name]}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def x_of(index: int, count: int) -> float:
    """Where the index-th of `count` factors stands."""
    return LEFT + index * (WIDTH - LEFT - RIGHT) / (count - 1)


def y_of(share: float) -> float:
    """Where a share from 0 to 1 stands."""
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def axes(factors: Sequence[float]) -> list[str]:
    """Lines of the shares, and the factors below."""
    parts = [
        f'<path d="M{LEFT} {y_of(share):.1f}H{WIDTH - RIGHT}" stroke="#dde3ea"/>'
        f'<text x="{LEFT - 8}" y="{y_of(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text x="{x_of(index, len(factors)):.1f}" y="{HEIGHT - BOTTOM + 18}" '
        f'text-anchor="middle">x{factor:g}</text>'
        for index, factor in enumerate(factors)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = "area of the box, times that of the proposed one"
    return [
        *parts,
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{title}</text>',
    ]


def band_and_line(curve: Curve, colour: str) -> list[str]:
    """A curve and the band of its intervals."""
    places = [x_of(index, len(curve)) for index in range(len(curve))]
    upper = [f"{x:.1f},{y_of(high):.1f}" for x, (_, _, high) in zip(places, curve, strict=True)]
    lower = [f"{x:.1f},{y_of(low):.1f}" for x, (_, low, _) in zip(places, curve, strict=True)]
    line = [f"{x:.1f},{y_of(score):.1f}" for x, (score, _, _) in zip(places, curve, strict=True)]
    return [
        f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.15"/>',
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
    ]
