"""The client of the CRM: what its answers mean."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from crm.clients import contacts
from jobs.errors import RateLimited
from tests.http_server import HttpServer, Reply

pytestmark = pytest.mark.usefixtures("crm_env")
THERE = Reply(status=409, body=b'{"message": "Contact already exists. Existing ID: 51"}')


def upsert() -> str:
    return contacts.upsert(email="ann@example.com", properties={"firstname": "Ann"})


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("30", 30), ("", 10), ("nonsense", 10), ("0", 1), ("-5", 10), ("99999999", 3600), ("9" * 5000, 3600)],
)
def test_a_429_says_for_how_long(http_server: HttpServer, retry_after: str, seconds: int) -> None:
    http_server.answer(Reply(status=429, headers={"Retry-After": retry_after}))
    with pytest.raises(RateLimited) as caught:
        upsert()
    assert caught.value.retry_after_seconds == seconds


@pytest.mark.parametrize(("minutes", "at_least", "at_most"), [(2, 110, 120), (-2, 1, 1)])
def test_a_429_may_name_a_date(http_server: HttpServer, minutes: int, at_least: int, at_most: int) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    http_server.answer(THERE, Reply(status=429, headers={"Retry-After": until}))
    with pytest.raises(RateLimited) as caught:
        upsert()
    assert at_least <= caught.value.retry_after_seconds <= at_most


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(status=500)],
        [Reply(status=503, body=b"\0 down")],
        [THERE, Reply(status=502)],
        # Deleted between the two calls.
        [THERE, Reply(status=404)],
        [Reply(status=200, body=b"{}")],
        [Reply(status=200, body=b"[]")],
        [Reply(status=200, body=b"no JSON")],
    ],
)
def test_faults_are_worth_another_try(http_server: HttpServer, replies: list[Reply]) -> None:
    http_server.answer(*replies)
    with pytest.raises(contacts.CrmUnavailable, match=r"^[^\0]+\.$"):
        upsert()


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
def test_refusals_are_for_good_and_say_why(http_server: HttpServer, status: int) -> None:
    http_server.answer(Reply(status=status, body=b'{"message": "Not\\nlike this."}'))
    with pytest.raises(contacts.CrmRefused, match=f"^The CRM refused the contact: {status} Not like this.$"):
        upsert()


def test_a_crm_that_is_silent_is_given_up(http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contacts, "READ_SECONDS", 0.3)
    http_server.hold()
    with pytest.raises(contacts.CrmUnavailable, match="timed out"):
        upsert()


def test_a_crm_that_is_not_there_is_unavailable(http_server: HttpServer) -> None:
    http_server.stop()
    with pytest.raises(contacts.CrmUnavailable, match="cannot be reached"):
        upsert()
