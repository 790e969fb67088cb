"""What is kept of a result: its JSON, its drawing, and its section of the page."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import page
from bench.items import ITEMS
from bench.result import Panel, Recorded, Result, Table, percentile, spread
from devstack.home import BASE_DIR

VERSIONS = {"cores": "2", "processor": "One", "system": "Linux 6", "Python": "3.11.7", "Handoff": "abc+"}
TITLES = {"first": "the first", "second": "the second"}


def recorded(item: str, *, cell: str = "1", size: str = "full", with_curve: bool = True) -> Recorded:
    curve = Panel(title="Rate", x_label="rows", curves={"a & b": [(1, 2.0), (1000, float("nan")), (10, 4)]})
    result = Result(
        how="One job.",
        tables=[Table(columns=("", "jobs"), rows=[("rate | all", cell)]), Table(columns=("x", "y"), rows=[("2", "3")])],
        figures={"rates": [1.5]},
        panels=[curve] if with_curve else [],
    )
    return Recorded(item=item, measured_at="2026-01-02 03:04 UTC", size=size, versions=VERSIONS, result=result)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks.md").write_text(f"# Benchmarks\n\n{page.BEGIN}\n\n{page.END}\n\nEnd.\n")
    return tmp_path


def test_a_recorded_result_is_read_back_as_it_was() -> None:
    one = recorded("first", with_curve=False)
    assert Recorded.from_json(one.as_json()) == one


def test_recording_writes_the_figures_the_drawing_and_a_section(docs: Path) -> None:
    page.record(recorded("second"), titles=TITLES, docs=docs)
    assert json.loads((docs / "bench" / "second.json").read_text())["result"]["figures"] == {"rates": [1.5]}
    assert ElementTree.parse(docs / "bench" / "second.svg").getroot().tag.endswith("svg")
    assert (docs / "benchmarks.md").read_text() == (
        f"# Benchmarks\n\n{page.BEGIN}\n\n"
        "## second: the second\n\nOne job.\n\n"
        "Measured 2026-01-02 03:04 UTC on 2 cores (One), Linux 6; Python 3.11.7, Handoff abc+.\n\n"
        "|  | jobs |\n|---|---:|\n| rate \\| all | 1 |\n\n| x | y |\n|---|---:|\n| 2 | 3 |\n\n"
        "![the second](bench/second.svg)\n\n"
        f"{page.END}\n\nEnd.\n"
    )


def test_each_item_keeps_its_own_section_in_the_order_of_the_items(docs: Path) -> None:
    for item, cell in (("second", "1"), ("first", "2"), ("second", "3")):
        page.record(recorded(item, cell=cell, size="quick"), titles=TITLES, docs=docs)
    text = (docs / "benchmarks.md").read_text()
    assert text.index("## first") < text.index("## second")
    assert [text.count(f"| rate \\| all | {cell} |") for cell in "123"] == [0, 1, 1]
    assert text.count("Sizes: quick.") == 2


def test_nothing_half_written_is_left(docs: Path) -> None:
    page.record(recorded("first"), titles=TITLES, docs=docs)
    assert sorted(path.name for path in docs.rglob("*") if path.is_file()) == [
        "benchmarks.md",
        "first.json",
        "first.svg",
    ]


def test_a_page_without_a_place_for_results_is_left_alone(docs: Path) -> None:
    (docs / "benchmarks.md").write_text("# Benchmarks\n")
    with pytest.raises(ValueError, match="no place for results"):
        page.record(recorded("first"), titles=TITLES, docs=docs)
    assert (docs / "benchmarks.md").read_text() == "# Benchmarks\n"


def test_every_item_is_on_the_page_and_the_page_agrees_with_what_is_recorded() -> None:
    text = page.PAGE.read_text()
    assert [name for name in ITEMS if f"`{name}`" not in text.partition(page.BEGIN)[0]] == []
    titles = {name: item.title for name, item in ITEMS.items()}
    assert page.with_results(text, page.sections(titles, BASE_DIR / "docs" / "bench")) == text


def test_spreads_and_percentiles_stand_also_for_few_values() -> None:
    assert [spread(values, "{:.1f}") for values in ([], [2], [3, 1, 2])] == ["–", "2.0", "1.0 / 2.0 / 3.0"]
    assert percentile([7.0], 99) == 7.0
    assert percentile([float(value) for value in range(101)], 99) == 99.0
