"""Rates as Celery writes them: "10/s", "100/m", "1000/h". A number alone is per second."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

_RATE = re.compile(r"([1-9]\d{0,8})(?:/([smh]))?", re.ASCII)
_PERIODS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_UNITS = {period: unit for unit, period in _PERIODS.items()}
# All starts within a period are kept, each in a row of its own.
MOST = 10_000


class InvalidLimit(ValueError):
    """A limit is written in a way that means nothing."""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any time of the length `period`."""

    count: int
    period: timedelta

    @classmethod
    def parse(cls, text: str | int) -> Self:
        """Raises InvalidLimit for what is no rate. Fractions are none: half a job a second is "30/m"."""
        found = _RATE.fullmatch(str(text)) if isinstance(text, (str, int)) else None
        if found is None or int(found[1]) > MOST:
            raise InvalidLimit(
                f'{text!r} is no rate: expected a number from 1 to {MOST:,} per second, minute or hour, as in "10/s", '
                '"100/m" or "1000/h".'
            )
        return cls(int(found[1]), _PERIODS[found[2] or "s"])

    def __str__(self) -> str:
        return f"{self.count}/{_UNITS[self.period]}"
