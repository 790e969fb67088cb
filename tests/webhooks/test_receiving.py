"""Events that come in: checked on the raw body, stored once together with their job, handled in the background."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from django.db import connections
from django.test import Client
from pytest_django.live_server_helper import LiveServer
from standardwebhooks import Webhook

from accounts.models import User
from jobs.errors import Permanent
from jobs.models import Job
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.connections import somebody_waits_for_a_lock
from tests.processes import Processes
from tests.waiting import wait_until
from webhooks import receiving, sealing
from webhooks.handling import handle_event
from webhooks.models import IncomingEvent, Source
from webhooks.tasks import handle

pytestmark = pytest.mark.django_db
RENAMED = {"type": "contact.updated", "timestamp": "2026-01-01", "data": {"email": "Ann@example.com", "name": "Anne"}}


@pytest.fixture
def secret(db: None) -> str:
    """The secret of the source "shop"."""
    secret = sealing.new_secret()
    source = Source(name="shop")
    receiving.set_secret(source=source, secret=secret)
    source.save()
    return secret


def signed(
    secret: str, body: bytes, *, event_id: str = "msg_1", at: datetime | None = None, **headers: str
) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "Content-Type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, at, body.decode()),
        **headers,
    }


def send(secret: str, event: Any = RENAMED, *, source: str = "shop", body: bytes | None = None, **options: Any) -> Any:
    body = json.dumps(event).encode() if body is None else body
    headers = signed(secret, body, **options)
    return Client().post(f"/webhooks/in/{source}", body, content_type="application/json", headers=headers)


def test_a_new_event_is_stored_with_its_job_and_answered_202(secret: str) -> None:
    answer = send(secret)
    event = IncomingEvent.objects.get()
    assert (answer.status_code, answer.json()) == (202, {"id": str(event.pk)})
    assert (event.event_id, event.type, json.loads(event.body)) == ("msg_1", "contact.updated", RENAMED)
    job = Job.objects.get()
    assert (job.pk, job.queue, job.kwargs) == (event.job_id, "webhooks", {"event_id": str(event.pk)})


def test_a_repetition_is_answered_200_and_makes_no_second_job(secret: str) -> None:
    first = send(secret)
    again = send(secret)
    assert (again.status_code, again.json()) == (200, first.json())
    assert IncomingEvent.objects.count() == Job.objects.count() == 1


def test_two_sources_may_use_the_same_event_id(secret: str) -> None:
    other = Source(name="bank")
    receiving.set_secret(source=other, secret=secret)
    other.save()
    assert [send(secret).status_code, send(secret, source="bank").status_code] == [202, 202]


@pytest.mark.django_db(transaction=True)
def test_of_two_deliveries_at_the_same_moment_one_is_stored(secret: str) -> None:
    body = json.dumps(RENAMED).encode()
    gate = threading.Barrier(4)
    outcomes: list[bool] = []

    def deliver() -> None:
        gate.wait()
        try:
            received = receiving.receive(source_name="shop", headers=signed(secret, body), body=body)
            outcomes.append(received.is_new)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]
    assert IncomingEvent.objects.count() == Job.objects.count() == 1


# -- Refusals ----------------------------------------------------------------------------------------------------------
def assert_refused(answer: Any, status: int) -> None:
    assert answer.status_code == status, answer.content
    assert answer.json()["error"]["message"]
    assert not IncomingEvent.objects.exists()
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "nonsense"},
        {"webhook-signature": "v1,not base64,x"},
        {"webhook-signature": "v1,ü"},
        {"webhook-signature": ""},
        {"webhook-timestamp": "yesterday"},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "1e400"},
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
    ],
)
def test_what_is_not_signed_as_it_says_is_refused(secret: str, headers: dict[str, str]) -> None:
    body = json.dumps(RENAMED).encode()
    all_headers = {**signed(secret, body), **headers}
    answer = Client().post("/webhooks/in/shop", body, content_type="application/json", headers=all_headers)
    assert_refused(answer, 401)


def test_a_changed_body_is_refused_even_where_it_means_the_same(secret: str) -> None:
    headers = signed(secret, json.dumps(RENAMED).encode())
    other = json.dumps(RENAMED, indent=1).encode()
    answer = Client().post("/webhooks/in/shop", other, content_type="application/json", headers=headers)
    assert_refused(answer, 401)


def test_another_secret_is_refused(secret: str) -> None:
    assert_refused(send(sealing.new_secret()), 401)


@pytest.mark.parametrize("seconds", [-310, 310])
def test_a_signature_of_another_time_is_refused(secret: str, seconds: int) -> None:
    assert_refused(send(secret, at=datetime.now(UTC) + timedelta(seconds=seconds)), 401)


@pytest.mark.parametrize("seconds", [-290, 290])
def test_clocks_may_differ_by_five_minutes(secret: str, seconds: int) -> None:
    assert send(secret, at=datetime.now(UTC) + timedelta(seconds=seconds)).status_code == 202


def test_an_unknown_source_and_one_that_is_off_are_not_there(secret: str) -> None:
    assert_refused(send(secret, source="nobody"), 404)
    Source.objects.update(is_active=False)
    assert_refused(send(secret), 404)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"\xff", 401),
        (json.dumps({"type": "a"}).encode("utf-16"), 401),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"type": 7}', 422),
        (b'{"type": ""}', 422),
        (b'{"type": "a\\u0000"}', 422),
        (b'{"type": "\\ud800"}', 422),
        (b'{"type": "%s"}' % (b"a" * 256), 422),
    ],
)
def test_a_body_that_is_no_event_is_refused(secret: str, body: bytes, status: int) -> None:
    headers = signed(secret, body.decode("latin-1").encode() if status == 401 else body)
    answer = Client().post("/webhooks/in/shop", body, content_type="application/json", headers=headers)
    assert_refused(answer, status)


def test_a_large_body_is_refused_before_it_is_read(secret: str) -> None:
    assert_refused(send(secret, body=b'{"type": "a", "x": "%s"}' % (b"x" * 300_000)), 413)
    assert send(secret, body=b'{"type": "a", "x": "%s"}' % (b"x" * 200_000)).status_code == 202


def test_other_methods_are_not_there(secret: str) -> None:
    assert Client().get("/webhooks/in/shop").status_code == 405


# -- Handling ----------------------------------------------------------------------------------------------------------
def completed(count: int) -> bool:
    return Job.objects.filter(state="completed").count() == count


@pytest.mark.django_db(transaction=True)
def test_a_changed_contact_changes_the_users_name(
    secret: str, user: User, live_server: LiveServer, processes: Processes
) -> None:
    processes.worker("webhooks", pool="threads")
    body = json.dumps(RENAMED).encode()
    answer = httpx.post(f"{live_server.url}/webhooks/in/shop", content=body, headers=signed(secret, body), timeout=30)
    assert answer.status_code == 202
    wait_until(lambda: completed(1))
    user.refresh_from_db()
    event = IncomingEvent.objects.get()
    assert (user.name, event.outcome) == ("Anne", "handled")
    assert Job.objects.get().result == {"outcome": "handled", "note": "The user's name is taken over."}
    assert Job.objects.get().progress_message == "The user's name is taken over."
    # Once more by hand: what was done meanwhile stays.
    User.objects.update(name="Annie")
    handle.apply_async(kwargs={"event_id": str(event.pk)})
    wait_until(lambda: completed(2))
    user.refresh_from_db()
    assert user.name == "Annie"
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_events_of_unknown_types_and_people_are_kept_and_done_with(secret: str, processes: Processes) -> None:
    processes.worker("webhooks", pool="threads")
    send(secret, {"type": "planet.discovered"}, event_id="a")
    send(secret, event_id="b")
    wait_until(lambda: completed(2))
    notes = dict(IncomingEvent.objects.values_list("event_id", "note"))
    assert notes == {"a": "Nobody handles this type.", "b": "Nobody here has this address."}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "data",
    [
        None,
        {"email": "ann@example.com"},
        {"email": "ann@example.com", "name": ""},
        {"email": "ann@example.com", "name": "Ann\nBcc: all"},
        {"email": "ann@example.com", "name": "\ud800"},
        {"email": "ann@example.com", "name": "a" * 151},
        {"email": "\0", "name": "Anne"},
    ],
)
def test_data_that_cannot_be_used_fails_for_good_in_words(secret: str, user: User, data: Any) -> None:
    send(secret, {"type": "contact.updated", "data": data})
    with pytest.raises(Permanent, match=r"\.$"):
        handle_event(event_id=IncomingEvent.objects.get().pk)
    user.refresh_from_db()
    assert user.name == "Ann"
    assert IncomingEvent.objects.get().outcome == "pending"


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_in_the_middle_of_an_event_handles_it_once(
    secret: str, user: User, processes: Processes
) -> None:
    victim = processes.worker("webhooks")
    obstacle = connections["default"].copy()
    obstacle.set_autocommit(False)
    with obstacle.cursor() as cursor:
        cursor.execute("SELECT 1 FROM accounts_user WHERE id = %s FOR UPDATE", [user.pk])
    send(secret)
    wait_until(somebody_waits_for_a_lock)
    victim.kill()
    obstacle.rollback()
    obstacle.close()
    processes.worker("webhooks")
    wait_until(lambda: completed(1), timeout=30)
    user.refresh_from_db()
    assert user.name == "Anne"
    assert Job.objects.get().stalled_count == 1
    assert_ledger_consistent()
