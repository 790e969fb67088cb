"""What the daily digest tells. Apps fill the registry; the digest knows none of them.

They are registered in `config.subscriptions`, because this app may not import those above it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

# What is worth more than five lines is worth a look at the site.
MOST_ITEMS = 5


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that a line counts, with the address where it is to be had."""

    text: str
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a digest: what, how many, and at the most `MOST_ITEMS` of them by name."""

    label: str
    count: int
    items: tuple[Item, ...] = ()
    is_bad: bool = False

    @property
    def left_out_count(self) -> int:
        """How many are counted but not named; 0 where none is."""
        return self.count - len(self.items) if self.items else 0


Provider = Callable[[Sequence[int], datetime, datetime], Mapping[int, Iterable[Line]]]

_providers: dict[str, Provider] = {}


def register(name: str, provider: Provider) -> None:
    """Adds lines to every digest. A second call with the same name replaces the first; the order is that of the first.

    A provider is called with the keys of some hundred users and a span of time, and returns the lines of those who have
    any. It makes a fixed number of queries, however many the users are. A line whose count is 0 is not shown.
    """
    _providers[name] = provider


def lines(*, user_ids: Sequence[int], start_at: datetime, end_at: datetime) -> dict[int, list[Line]]:
    """The lines of each of these users' digests."""
    found: dict[int, list[Line]] = {user_id: [] for user_id in user_ids}
    for provider in _providers.values():
        for user_id, more in provider(user_ids, start_at, end_at).items():
            found[user_id].extend(line for line in more if line.count)
    return found
