"""The registry of what a digest tells."""

from datetime import UTC, datetime

import pytest

from notifications import digest_sections
from notifications.digest_sections import Item, Line

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_sections, "_providers", {})


def test_lines_come_in_the_order_of_registration_and_only_where_there_is_something_to_tell() -> None:
    digest_sections.register("b", lambda *_: {1: [Line(label="B", count=1)]})
    digest_sections.register("a", lambda *_: {1: [Line(label="A", count=2), Line(label="None", count=0)]})
    lines = digest_sections.lines(user_ids=[1, 2], start_at=NOW, end_at=NOW)
    assert [line.label for line in lines[1]] == ["B", "A"]
    assert lines[2] == []


def test_registering_a_name_again_replaces_it() -> None:
    digest_sections.register("a", lambda *_: {1: [Line(label="Old", count=1)]})
    digest_sections.register("a", lambda *_: {1: [Line(label="New", count=1)]})
    assert [line.label for line in digest_sections.lines(user_ids=[1], start_at=NOW, end_at=NOW)[1]] == ["New"]


def test_what_is_not_named_is_counted() -> None:
    assert Line(label="x", count=7, items=(Item(text="one"),)).left_out_count == 6
    assert Line(label="x", count=7).left_out_count == 0
