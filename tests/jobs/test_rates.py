from datetime import timedelta
from typing import Any

import pytest

from jobs.rates import InvalidLimit, Rate


@pytest.mark.parametrize(
    ("written", "count", "seconds"),
    [("10/s", 10, 1), ("100/m", 100, 60), ("1000/h", 1000, 3600), ("7", 7, 1), (7, 7, 1), ("10000/h", 10_000, 3600)],
)
def test_a_rate_is_written_as_celery_writes_it(written: Any, count: int, seconds: int) -> None:
    assert Rate.parse(written) == Rate(count, timedelta(seconds=seconds))
    assert Rate.parse(str(Rate.parse(written))) == Rate.parse(written)


@pytest.mark.parametrize(
    "written", ["", "0/s", "-1/s", "1.5/s", 0.5, "10/d", "10/ s", "٣/s", "10001/s", True, None, [1]]
)
def test_what_is_no_rate_is_refused(written: Any) -> None:
    with pytest.raises(InvalidLimit, match="is no rate"):
        Rate.parse(written)
