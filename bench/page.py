"""Keeps results: one JSON and, where there are curves, one drawing per item, and docs/benchmarks.md made of them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.machine import sentence
from bench.plot import drawing
from bench.result import Recorded, Table
from devstack.home import BASE_DIR

DOCS = BASE_DIR / "docs"
PAGE = DOCS / "benchmarks.md"
# What lies between these two lines of the page is written here.
BEGIN, END = "<!-- results: written by bin/bench --record -->", "<!-- end of results -->"


def record(recorded: Recorded, *, titles: Mapping[str, str], docs: Path = DOCS) -> None:
    """Writes an item's files and the page. Each is replaced in one step, and the page comes last.

    `titles` are those of all items, in the order of the page. Killed in the middle, each file is the old or the new
    one; called again, for whichever item, the page agrees with the files.
    """
    folder, path = docs / "bench", docs / "benchmarks.md"
    # Before anything is written: raises where the page has no place for it.
    with_results(path.read_text(), ())
    folder.mkdir(exist_ok=True)
    if recorded.result.panels:
        _replace(folder / f"{recorded.item}.svg", drawing(titles[recorded.item], recorded.result.panels))
    _replace(folder / f"{recorded.item}.json", recorded.as_json())
    _replace(path, with_results(path.read_text(), sections(titles, folder)))


def with_results(text: str, sections: Iterable[str]) -> str:
    """The text of the page with these sections in the place of those that it had. Raises ValueError without a place."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/benchmarks.md has no place for results: the lines {BEGIN} and {END}.")
    return "\n\n".join([head + BEGIN, *sections, END + tail])


def section(title: str, recorded: Recorded) -> str:
    """The part of the page that shows one item."""
    lines = [f"## {recorded.item}: {title}", "", recorded.result.how, ""]
    size = "" if recorded.size == "full" else f" Sizes: {recorded.size}."
    lines += [f"Measured {recorded.measured_at} on {sentence(dict(recorded.versions))}{size}", ""]
    lines += "\n\n".join("\n".join(markdown(table)) for table in recorded.result.tables).splitlines()
    if recorded.result.panels:
        lines += ["", f"![{title}](bench/{recorded.item}.svg)"]
    return "\n".join(lines)


def markdown(table: Table) -> list[str]:
    """A table as Markdown: words to the left, numbers to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    head, *rows = [f"| {' | '.join(row)} |" for row in cells]
    return [head, f"|---|{'---:|' * (len(table.columns) - 1)}", *rows]


def sections(titles: Mapping[str, str], folder: Path) -> Iterable[str]:
    """The parts of the page that show what lies in a folder, in the order of the titles."""
    for item, title in titles.items():
        path = folder / f"{item}.json"
        if path.exists():
            yield section(title, Recorded.from_json(path.read_text()))


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
