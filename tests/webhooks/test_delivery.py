"""Events on their way to endpoints: signed, retried, kept, and sent once for each endpoint and event."""

import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models.functions import Now

from accounts import services as accounts
from accounts.models import User
from jobs.errors import Permanent
from jobs.models import Job
from tests.guarantees.ledger import assert_ledger_consistent
from tests.http_server import HttpServer, Received, Reply
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until
from webhooks import services
from webhooks.delivery import RETRY_SECONDS, attempt
from webhooks.models import Delivery, DeliveryAttempt, Endpoint, OutgoingEvent
from webhooks.tasks import deliver

pytestmark = pytest.mark.django_db(transaction=True)


def register(user: User, url: str) -> tuple[Endpoint, str]:
    return services.create_endpoint(owner=user, url=url, event_types=["media.ready"])


def happen(user: User, subject: str = "picture-7") -> None:
    services.publish(event_type="media.ready", user=user, subject=subject, data={"id": 7, "name": "Grüße"})


def signature(secret: str, request: Received) -> str:
    """What the specification says, written down once more: base64 of HMAC-SHA256 over id, time and raw body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message_id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    signed = f"{message_id}.{timestamp}.".encode() + request.body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def let_the_retry_come() -> None:
    Job.objects.filter(state="delayed").update(run_at=Now())


def delivery() -> Delivery:
    return Delivery.objects.get()


def test_an_event_arrives_signed_and_whole(user: User, http_server: HttpServer, processes: Processes) -> None:
    _, secret = register(user, f"{http_server.url}/hook")
    processes.worker("webhooks", pool="threads")
    happen(user)
    wait_until(lambda: delivery().state == "delivered")
    [request] = http_server.requests
    assert (request.method, request.path) == ("POST", "/hook")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-signature"] == signature(secret, request)
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert "." not in request.headers["webhook-id"]
    body = json.loads(request.body)
    assert (body["type"], body["data"]) == ("media.ready", {"id": 7, "name": "Grüße"})
    wait_until(lambda: Job.objects.get().state == "completed")
    assert Job.objects.get().result == {"delivered": True, "status": 200}
    assert (Job.objects.get().progress_percent, Job.objects.get().progress_message) == (100, "Delivered")
    assert Job.objects.get().kwargs == {"delivery_id": str(delivery().pk)}
    [made] = DeliveryAttempt.objects.all()
    assert (made.number, made.status, made.error, made.response_excerpt) == (1, 200, "", "thanks")
    assert_ledger_consistent()


def test_what_is_not_accepted_comes_again_by_the_schedule_and_then_fails(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(
        Reply(status=500, body=b"broken"), Reply(status=302, headers={"Location": "http://127.0.0.2/"}),
        Reply(status=429, headers={"Retry-After": "1"}), Reply(status=404), Reply(status=503),
    )  # fmt: skip
    register(user, http_server.url)
    processes.worker("webhooks", pool="threads")
    happen(user)
    for number, seconds in enumerate(RETRY_SECONDS, start=1):
        wait_until(lambda number=number: Job.objects.filter(state="delayed", attempt=number + 1).exists())  # type: ignore[misc]
        job = Job.objects.get()
        assert delivery().state == "pending"
        ended_at = DeliveryAttempt.objects.get(number=number).finished_at
        assert abs(job.run_at - ended_at - timedelta(seconds=seconds)) < timedelta(seconds=2)
        let_the_retry_come()
    wait_until(lambda: Job.objects.get().state == "failed")
    assert RETRY_SECONDS == (5, 300, 1800, 7200)
    assert delivery().state == "failed"
    assert Job.objects.get().error == "Given up after the last attempt. The endpoint answered 503 Service Unavailable."
    assert list(DeliveryAttempt.objects.values_list("number", "status")) == [
        (1, 500), (2, 302), (3, 429), (4, 404), (5, 503)
    ]  # fmt: skip
    assert "redirects are not followed" in DeliveryAttempt.objects.get(number=2).error
    assert DeliveryAttempt.objects.get(number=1).response_excerpt == "broken"
    assert len({request.headers["webhook-id"] for request in http_server.requests}) == 1
    assert_ledger_consistent()


def test_an_accepted_second_attempt_ends_the_delivery(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    _, secret = register(user, http_server.url)
    http_server.answer(Reply(status=500))
    processes.worker("webhooks", pool="threads")
    happen(user)
    # Without any help: the first retry comes after 5 s.
    wait_until(lambda: delivery().state == "delivered", timeout=30)
    first, second = http_server.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert second.headers["webhook-signature"] == signature(secret, second)
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"]) + 4


def test_an_address_that_turns_private_after_registration_fails_for_good(
    user: User, private_server: HttpServer, processes: Processes
) -> None:
    endpoint, _ = register(user, "https://example.com/")
    Endpoint.objects.filter(pk=endpoint.pk).update(url=f"{private_server.url}/")
    processes.worker("webhooks", pool="threads")
    happen(user)
    wait_until(lambda: Job.objects.get().state == "failed")
    assert "private or reserved network" in Job.objects.get().error
    assert (delivery().state, Job.objects.get().attempt, private_server.requests) == ("failed", 1, [])
    assert_ledger_consistent()


def test_one_endpoint_that_is_silent_does_not_keep_another_waiting(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    silent = HttpServer()
    silent.start()
    silent.hold()
    try:
        register(user, silent.url)
        register(user, http_server.url)
        processes.worker("webhooks", pool="threads", concurrency=2)
        happen(user)
        wait_until(lambda: silent.held_count == 1)
        assert Job.objects.filter(state="active", progress_message="Waiting for the endpoint's answer").exists()
        wait_until(lambda: http_server.requests)
    finally:
        silent.stop()


@POOLS
def test_a_worker_killed_while_the_endpoint_thinks_sends_again_under_the_same_id(
    user: User, http_server: HttpServer, processes: Processes, pool: str
) -> None:
    register(user, http_server.url)
    victim = processes.worker("webhooks", pool=pool)
    http_server.hold()
    happen(user)
    wait_until(lambda: http_server.held_count == 1)
    victim.kill()
    http_server.release()
    processes.worker("webhooks", pool=pool)
    wait_until(lambda: delivery().state == "delivered", timeout=30)
    wait_until(lambda: Job.objects.get().state == "completed")
    first, second = http_server.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    died, lived = DeliveryAttempt.objects.all()
    assert (died.finished_at, died.status) == (None, None)
    assert lived.status == 200
    assert Job.objects.get().stalled_count == 1
    assert_ledger_consistent()


def test_a_second_run_of_a_delivered_delivery_sends_nothing(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    register(user, http_server.url)
    processes.worker("webhooks", pool="threads")
    happen(user)
    wait_until(lambda: Job.objects.get().state == "completed")
    deliver.apply_async(kwargs={"delivery_id": str(delivery().pk)})
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    assert len(http_server.requests) == 1
    assert len({json.dumps(result) for result in Job.objects.values_list("result", flat=True)}) == 1


def test_a_secret_that_cannot_be_read_fails_the_delivery_in_words(user: User, http_server: HttpServer) -> None:
    register(user, http_server.url)
    happen(user)
    Endpoint.objects.update(sealed_secret="sealed under another key")
    with pytest.raises(Permanent, match="SECRET_KEY has changed"):
        attempt(delivery_id=delivery().pk, job_id=None)
    assert "SECRET_KEY has changed" in DeliveryAttempt.objects.get().error
    assert http_server.requests == []


# -- Who hears of what -------------------------------------------------------------------------------------------------
def test_an_event_happens_once_and_is_sent_once_to_each_endpoint(user: User) -> None:
    register(user, "https://one.example.com/")
    register(user, "https://two.example.com/")
    for _ in range(2):
        happen(user)
    assert OutgoingEvent.objects.count() == 1
    assert Delivery.objects.count() == Job.objects.count() == 2
    assert set(Delivery.objects.values_list("job_id", flat=True)) == set(Job.objects.values_list("pk", flat=True))
    assert set(Job.objects.values_list("queue", "owner")) == {("webhooks", user.pk)}


def test_an_event_stands_or_falls_with_what_caused_it(user: User) -> None:
    register(user, "https://example.com/")
    with transaction.atomic():
        happen(user)
        transaction.set_rollback(True)
    assert not OutgoingEvent.objects.exists()
    assert not Job.objects.exists()


def test_nobody_hears_of_another_users_events_but_staff_that_asks_for_it(user: User) -> None:
    other = User.objects.create(email="bob@example.com", name="Bob")
    staff = User.objects.create(email="eve@example.com", name="Eve", is_staff=True)
    register(other, "https://other.example.com/")
    register(staff, "https://staff.example.com/")
    wide, _ = services.create_endpoint(
        owner=staff, url="https://wide.example.com/", event_types=["media.ready"], hears_everybody=True
    )
    mine, _ = register(user, "https://mine.example.com/")
    happen(user)
    assert set(Delivery.objects.values_list("endpoint_id", flat=True)) == {wide.pk, mine.pk}
    # Who is staff no more hears no more.
    User.objects.filter(pk=staff.pk).update(is_staff=False)
    happen(user, "picture-8")
    assert Delivery.objects.filter(endpoint=wide).count() == 1


def test_endpoints_that_are_off_or_want_something_else_hear_nothing(user: User) -> None:
    off, _ = register(user, "https://example.com/")
    Endpoint.objects.filter(pk=off.pk).update(is_active=False)
    services.create_endpoint(owner=user, url="https://example.com/", event_types=["report.ready"])
    happen(user)
    # What nobody wants is not kept.
    assert not OutgoingEvent.objects.exists()


def test_a_sign_up_tells_staff_that_hears_everybody(db: None) -> None:
    staff = User.objects.create(email="eve@example.com", name="Eve", is_staff=True)
    services.create_endpoint(
        owner=staff, url="https://example.com/", event_types=["user.created"], hears_everybody=True
    )
    new = accounts.sign_up(email="ann@example.org", name="Ann", password="correct horse battery")
    event = OutgoingEvent.objects.get()
    assert json.loads(event.body)["data"] == {"id": new.pk, "email": "ann@example.org", "name": "Ann"}


def test_an_endpoint_switched_off_after_the_event_gets_nothing_and_the_delivery_says_so(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    endpoint, _ = register(user, http_server.url)
    happen(user)
    Endpoint.objects.filter(pk=endpoint.pk).update(is_active=False)
    processes.worker("webhooks", pool="threads")
    wait_until(lambda: Job.objects.get().state == "failed")
    assert Job.objects.get().error == "The endpoint is switched off."
    assert (delivery().state, http_server.requests) == ("failed", [])
    # Switched on and sent again, it arrives.
    Endpoint.objects.filter(pk=endpoint.pk).update(is_active=True)
    services.resend(delivery_id=delivery().pk)
    wait_until(lambda: delivery().state == "delivered")


def test_sending_again_is_refused_while_it_is_on_its_way_and_repeats_the_id_afterwards(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    register(user, http_server.url)
    happen(user)
    with pytest.raises(services.StillOnItsWay):
        services.resend(delivery_id=delivery().pk)
    processes.worker("webhooks", pool="threads")
    wait_until(lambda: Job.objects.get().state == "completed")
    services.resend(delivery_id=delivery().pk)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    first, second = http_server.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert list(DeliveryAttempt.objects.values_list("number", "status")) == [(1, 200), (2, 200)]


def test_a_delivery_to_a_deleted_endpoint_ends_quietly(
    user: User, http_server: HttpServer, processes: Processes
) -> None:
    endpoint, _ = register(user, http_server.url)
    happen(user)
    endpoint.delete()
    processes.worker("webhooks", pool="threads")
    wait_until(lambda: Job.objects.get().state == "completed")
    assert Job.objects.get().result == {"delivered": False, "status": None}
    assert http_server.requests == []
