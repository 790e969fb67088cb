"""Curves as SVG, without a library: panels one below the other, each with its axes and a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.result import Panel

WIDTH, PANEL_HEIGHT = 720, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 36, 44, 40
# Dark enough against white (3:1; WCAG 2.2, section 1.4.11), as in the charts of reports.
_COLOURS = ("#1d4ed8", "#d97706", "#0f766e", "#7e22ce", "#be123c", "#475569")
_TICKS = 4
_MOST_LABELS = 12


def drawing(title: str, panels: Sequence[Panel]) -> str:
    """The whole picture, on white. Points that are no numbers are left out."""
    height = PANEL_HEIGHT * len(panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="11" fill="#1f2937">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        lines += [f'<g transform="translate(0 {number * PANEL_HEIGHT})">', *_panel(panel), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where a point lies in the drawing."""

    low: float
    high: float
    top: float
    is_logarithmic: bool

    def x(self, value: float) -> float:
        low, high, here = (math.log10(max(one, 1e-9)) if self.is_logarithmic else one for one in self._ends(value))
        share = (here - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return PANEL_HEIGHT - _BOTTOM - value / self.top * (PANEL_HEIGHT - _TOP - _BOTTOM)

    def _ends(self, value: float) -> tuple[float, float, float]:
        return self.low, self.high, value


def _panel(panel: Panel) -> list[str]:
    curves = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in panel.curves.items()
    }
    xs = sorted({x for points in curves.values() for x, _ in points}) or [0.0]
    top = _rounded_up(max((y for points in curves.values() for _, y in points), default=0))
    scale = _Scale(low=xs[0], high=xs[-1], top=top, is_logarithmic=panel.is_x_logarithmic)
    lines = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>', *_axes(panel, xs, scale)]
    legend_x = float(_LEFT)
    for number, (name, points) in enumerate(curves.items()):
        lines += _curve(points, scale, colour := _COLOURS[number % len(_COLOURS)])
        lines.append(f'<rect x="{legend_x:.0f}" y="24" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{legend_x + 14:.0f}" y="33">{escape(name)}</text>')
        # The mean width of a letter of this size; an exact one needs the font.
        legend_x += 14 + 6.2 * len(name) + 18
    return lines


def _curve(points: Sequence[tuple[float, float]], scale: _Scale, colour: str) -> list[str]:
    placed = [(scale.x(x), scale.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _axes(panel: Panel, xs: Sequence[float], scale: _Scale) -> list[str]:
    lines = []
    for value in (scale.top * part / _TICKS for part in range(_TICKS + 1)):
        y = scale.y(value)
        lines.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d1d5db"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in xs[:: math.ceil(len(xs) / _MOST_LABELS)]:
        x, y = scale.x(value), PANEL_HEIGHT - _BOTTOM + 15
        lines.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_short(value)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{PANEL_HEIGHT - 8}" text-anchor="middle">{escape(panel.x_label)}</text>')
    return lines


def _rounded_up(value: float) -> float:
    """The smallest of 1, 2, 4 or 8 times a power of ten that is not less: its quarters are short numbers."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 8, 10) if step * scale >= value * (1 - 1e-9))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
