"""What is wrong at every look is logged once a minute."""

import time

import pytest

from jobs import told
from jobs.told import Told


def test_an_error_is_new_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Told()
    assert [one.is_new(ValueError(number)) for number in range(3)] == [True, False, False]
    assert one.is_new(TypeError())
    assert one.is_new(ValueError(), "another thing")
    now = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert [one.is_new(ValueError()) for _ in range(2)] == [True, False]


def test_no_more_are_remembered_than_are_of_use() -> None:
    one = Told()
    for number in range(5000):
        assert one.is_new(ValueError(), str(number))
    assert len(one._until) <= told._MOST
