"""What an activity report is made of. Apps fill the registry; a report knows none of them.

They are registered in `config.subscriptions`, because apps beside each other do not know one another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from reports.periods import Period

# A row takes a tenth of a millimetre of paper and 10 ms; whoever needs more wants a table, not a document.
MOST_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the summary. Beside the first of a section, only those that are not 0 are shown."""

    label: str
    value: int
    is_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: its cells as text, and a sentence below them where there is more to say."""

    cells: tuple[str, ...]
    note: str = ""
    is_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """One kind of thing that happened in the period.

    `day_counts` are the bars of the chart; `rows` are the newest at the most `MOST_ROWS` of `row_count`, oldest first.
    """

    title: str
    figures: tuple[Figure, ...]
    day_counts: Mapping[date, int]
    columns: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=())
    row_count: int = 0

    @property
    def left_out_count(self) -> int:
        """Rows that are counted but not shown."""
        return self.row_count - len(self.rows)


Provider = Callable[[Any, Period], Section]

_providers: dict[str, Provider] = {}


def register(name: str, provider: Provider) -> None:
    """Adds a section to every report; it is called with the owner and the period. A second call replaces the first.

    The order of registration is that of the report. A provider reads what belongs to the owner, and nothing else.
    """
    _providers[name] = provider


def names() -> list[str]:
    """The registered sections, in their order."""
    return list(_providers)


def section(name: str, *, owner: Any, period: Period) -> Section:
    """One section of one report."""
    return _providers[name](owner, period)
