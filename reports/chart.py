"""A stacked bar chart as SVG, made on the server: no script, nothing to load, and sharp at every size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from reports.periods import Period

# In the units of the drawing, which is scaled to the width of the page.
WIDTH = 680
HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 40, 4, 12, 22
LEGEND_HEIGHT = 26
# Dark enough against white (3:1; WCAG 2.2, section 1.4.11), and neighbours apart in lightness for printouts in grey.
COLOURS = ("#1d4ed8", "#d97706", "#0f766e", "#7e22ce", "#be123c", "#475569")

DAILY_UP_TO_DAYS = 31
WEEKLY_UP_TO_DAYS = 190
MOST_LABELS = 12


@dataclass(frozen=True, kw_only=True)
class Series:
    """One kind of thing, counted by day."""

    name: str
    day_counts: Mapping[date, int]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A rectangle of the drawing."""

    x: float
    y: float
    width: float
    height: float
    colour: str


def bar_chart(series: Sequence[Series], *, period: Period) -> SafeString:
    """The chart as an `<svg>` element with a title that says in words what it shows.

    A bar is a day, a week or a month, by the length of the period, so that there are never more than about 31.
    """
    unit, bins = bar_unit(period), _bins(period)
    counts = [[sum(one.day_counts.get(day, 0) for day in days) for one in series] for days in bins]
    totals = [sum(stack) for stack in counts]
    top = _rounded_up(max(totals, default=0))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    step = plot_width / len(bins)
    bars, labels = [], []
    label_every = math.ceil(len(bins) / MOST_LABELS)
    for number, (days, stack) in enumerate(zip(bins, counts, strict=True)):
        x, y = LEFT + number * step, float(TOP + plot_height)
        for colour, count in zip(_colours(len(series)), stack, strict=True):
            height = plot_height * count / top
            y -= height
            if count:
                # Seven tenths of the width, but not so wide that one bar alone is a wall.
                width = min(step * 0.7, 48)
                bars.append(_bar(x + (step - width) / 2, y, width, height, colour))
        if number % label_every == 0:
            labels.append({"x": _short(x + step / 2), "text": _label(unit, days[0])})
    ticks = [{"y": _short(TOP + plot_height * (1 - value / top)), "value": value} for value in _ticks(top)]
    totals_by_name = [(one.name, sum(one.day_counts.get(day, 0) for days in bins for day in days)) for one in series]
    return render_to_string(
        "reports/chart.svg",
        {
            "width": WIDTH,
            "height": HEIGHT + LEGEND_HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "label_y": HEIGHT - 6,
            "legend_y": HEIGHT + LEGEND_HEIGHT - 8,
            "bars": bars,
            "ticks": ticks,
            "labels": labels,
            "legend": _legend([one.name for one in series]),
            "unit": unit,
            "totals": totals_by_name,
            "most": max(totals, default=0),
        },
    )


def bar_unit(period: Period) -> str:
    """What one bar stands for."""
    if period.day_count <= DAILY_UP_TO_DAYS:
        return "day"
    return "week" if period.day_count <= WEEKLY_UP_TO_DAYS else "month"


def _bins(period: Period) -> list[list[date]]:
    """The days of the period in the groups that become one bar each; the first and last may be shorter."""
    keys: dict[str, Callable[[date], tuple[int, ...]]] = {
        "day": lambda day: (day.toordinal(),),
        "week": lambda day: day.isocalendar()[:2],
        "month": lambda day: (day.year, day.month),
    }
    key = keys[bar_unit(period)]
    return [list(days) for _, days in groupby(period.days(), key=key)]


def _label(unit: str, first: date) -> str:
    return first.strftime("%b %Y") if unit == "month" else f"{first.day} {first:%b}"


def _rounded_up(value: int) -> int:
    """The smallest of 4, 8, 12 … 40, 80, 120 … 400 … that is not less: it divides by four without a remainder."""
    scale = 4
    while value > 10 * scale:
        scale *= 10
    return max(1, math.ceil(value / scale)) * scale


def _ticks(top: int) -> list[int]:
    return [top * part // 4 for part in range(5)]


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _legend(names: Sequence[str]) -> list[dict[str, object]]:
    items, x = [], float(LEFT)
    for name, colour in zip(names, _colours(len(names)), strict=True):
        items.append({"x": _short(x), "text_x": _short(x + 15), "name": name, "colour": colour})
        # The mean width of a letter of this size; an exact one needs the font.
        x += 15 + 6.5 * len(name) + 18
    return items


def _bar(x: float, y: float, width: float, height: float, colour: str) -> Bar:
    return Bar(x=_short(x), y=_short(y), width=_short(width), height=_short(height), colour=colour)


def _short(number: float) -> float:
    return round(number, 2)
