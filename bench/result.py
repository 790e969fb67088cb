"""What one item has measured, as it is kept in docs/bench/: its table, its curves, and every single figure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Self

# Cells of a table, all of them text: the first says what was measured.
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its head."""

    columns: Row
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing of a plot: named curves over one axis, each a list of points."""

    title: str
    x_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    is_x_logarithmic: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of an item. `figures` holds what the tables sum up, each round by itself."""

    how: str
    tables: Sequence[Table]
    figures: Mapping[str, Any]
    panels: Sequence[Panel] = ()


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A result with what it was measured on and when."""

    item: str
    measured_at: str
    size: str
    versions: Mapping[str, str]
    result: Result = field(repr=False)

    def as_json(self) -> str:
        """The text of its file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `as_json` wrote."""
        kept = json.loads(text)
        result = kept.pop("result")
        panels = [Panel(**panel) for panel in result.pop("panels")]
        tables = [
            Table(columns=tuple(table["columns"]), rows=[tuple(row) for row in table["rows"]])
            for table in result.pop("tables")
        ]
        return cls(result=Result(panels=panels, tables=tables, **result), **kept)


def spread(values: Iterable[float], form: str = "{:.0f}") -> str:
    """Minimum, median and maximum; one number where there is only one, a dash where there is none."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return form.format(ordered[0]) if ordered else "–"
    return " / ".join(form.format(value) for value in (ordered[0], median(ordered), ordered[-1]))


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile, between two values where it lies between them; not a number where there are none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return quantiles(values, n=100, method="inclusive")[percent - 1]
