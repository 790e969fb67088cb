"""The bar chart."""

import re
import xml.etree.ElementTree as ET
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest

from reports.chart import HEIGHT, WIDTH, Series, bar_chart, bar_unit
from reports.periods import LONGEST_DAYS, Period

FIRST = date(2026, 1, 1)
SVG = "{http://www.w3.org/2000/svg}"


def period(day_count: int) -> Period:
    last = FIRST + timedelta(days=day_count - 1)
    return Period(from_date=FIRST, to_date=last, zone=ZoneInfo("UTC"))


def drawn(counts: dict[date, int], *, day_count: int, name: str = "Jobs") -> ET.Element:
    return ET.fromstring(bar_chart([Series(name=name, day_counts=counts)], period=period(day_count)))


def bars(chart: ET.Element) -> list[dict[str, float]]:
    rectangles = [rectangle for rectangle in chart.iter(f"{SVG}rect") if rectangle.get("width") != "10"]
    return [{key: float(rectangle.attrib[key]) for key in ("x", "y", "width", "height")} for rectangle in rectangles]


@pytest.mark.parametrize(
    ("day_count", "unit"),
    [(1, "day"), (31, "day"), (32, "week"), (190, "week"), (191, "month"), (LONGEST_DAYS, "month")],
)
def test_a_bar_is_a_day_a_week_or_a_month_so_that_there_are_never_too_many(day_count: int, unit: str) -> None:
    every_day = dict.fromkeys(period(day_count).days(), 1)
    assert bar_unit(period(day_count)) == unit
    assert 1 <= len(bars(drawn(every_day, day_count=day_count))) <= 31


def test_heights_are_in_proportion_and_stay_inside_the_drawing() -> None:
    found = bars(drawn({FIRST: 10, FIRST + timedelta(days=1): 20}, day_count=7))
    assert found[1]["height"] == pytest.approx(2 * found[0]["height"], rel=0.001)
    for bar in found:
        assert 0 <= bar["x"] <= bar["x"] + bar["width"] <= WIDTH
        assert 0 <= bar["y"] <= bar["y"] + bar["height"] <= HEIGHT


def test_bars_of_one_day_stand_on_each_other() -> None:
    series = [Series(name="Jobs", day_counts={FIRST: 3}), Series(name="Mails", day_counts={FIRST: 5})]
    lower, upper = bars(ET.fromstring(bar_chart(series, period=period(1))))
    assert upper["y"] + upper["height"] == pytest.approx(lower["y"], abs=0.02)


@pytest.mark.parametrize("most", [0, 1, 4, 5, 20, 21, 99, 100, 12_345])
def test_the_axis_has_whole_numbers_that_hold_the_highest_bar(most: int) -> None:
    chart = drawn({FIRST: most}, day_count=1)
    numbers = [text.text or "" for text in chart.iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    assert all(re.fullmatch(r"\d+", number) for number in numbers)
    assert int(numbers[-1]) >= most
    assert len(set(numbers)) == 5


def test_the_title_says_in_words_what_the_chart_shows() -> None:
    title = drawn({FIRST: 2, FIRST + timedelta(days=1): 5}, day_count=7).find(f"{SVG}title")
    assert title.text == "Bar chart by day: Jobs 7; at the most 5 in one day."


def test_a_name_cannot_break_out_of_the_drawing() -> None:
    chart = drawn({FIRST: 1}, day_count=1, name="</svg><script>alert(1)</script>")
    assert list(chart.iter(f"{SVG}script")) == []
    assert "</svg><script>alert(1)</script>" in [text.text for text in chart.iter(f"{SVG}text")]
