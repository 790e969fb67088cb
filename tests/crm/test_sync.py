"""A new user becomes a contact at the CRM, once, on good days and on bad ones."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts import services as accounts
from accounts.models import User
from crm import services
from crm.models import CrmContact
from crm.tasks import MAX_RETRIES, sync_contact
from jobs.models import Job, QueueControl
from tests.guarantees.ledger import assert_ledger_consistent
from tests.http_server import HttpServer, Reply
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

CREATED = Reply(status=201, body=b'{"id": "51", "properties": {}}')
UPDATED = Reply(status=200, body=b'{"id": "51", "properties": {}}')
THERE = Reply(status=409, body=b'{"status": "error", "message": "Contact already exists. Existing ID: 51"}')


def sign_up() -> User:
    return accounts.sign_up(email="ann+crm@example.com", name="Ann van Dyck", password="correct horse battery")


def job() -> Job:
    return Job.objects.get(task="crm.tasks.sync_contact")


def contact() -> CrmContact:
    return CrmContact.objects.get()


def test_without_a_crm_nothing_is_planned() -> None:
    sign_up()
    assert not CrmContact.objects.exists()
    assert not Job.objects.filter(queue="crm").exists()


def test_a_new_user_is_created_at_the_crm(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.always(CREATED)
    user = sign_up()
    assert (contact().state, contact().job_id, job().owner_id) == ("pending", job().pk, user.pk)
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "completed")
    [request] = http_server.requests
    assert (request.method, request.path) == ("POST", "/crm/v3/objects/contacts")
    assert request.headers["authorization"] == "Bearer a token"
    assert json.loads(request.body) == {
        "properties": {"email": "ann+crm@example.com", "firstname": "Ann", "lastname": "van Dyck"}
    }
    assert (contact().state, contact().remote_id, contact().error) == ("synced", "51", "")
    assert job().result == {"synced": True, "remote_id": "51"}
    assert (job().progress_percent, job().progress_message) == (100, "Synced")
    assert job().kwargs == {"contact_id": contact().pk}
    assert_ledger_consistent()


def test_a_contact_that_is_there_is_updated(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(THERE, UPDATED)
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "completed")
    _, update = http_server.requests
    assert (update.method, update.path) == (
        "PATCH", "/crm/v3/objects/contacts/ann%2Bcrm%40example.com?idProperty=email"
    )  # fmt: skip
    assert contact().remote_id == "51"


def test_a_429_is_got_over_and_costs_no_attempt(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(Reply(status=429, headers={"Retry-After": "1"}), CREATED)
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    # Without any help.
    wait_until(lambda: job().state == "completed", timeout=30)
    assert (job().attempt, contact().state, len(http_server.requests)) == (1, "synced", 2)
    assert_ledger_consistent()


def test_a_429_holds_the_queue_for_as_long_as_it_says(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(Reply(status=429, headers={"Retry-After": "90"}))
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    queue = wait_until(lambda: QueueControl.objects.filter(pk="crm", rate_limited_until__isnull=False).first())
    assert queue.rate_limited_until is not None
    assert timedelta(seconds=60) < queue.rate_limited_until - timezone.now() < timedelta(seconds=91)
    assert (job().state, job().attempt, contact().state) == ("waiting", 1, "pending")
    assert contact().error == "The CRM takes no more calls for 90 s."


def test_a_fault_of_the_crm_is_tried_again(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(THERE, Reply(status=503, body=b"down"))
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "delayed")
    assert (contact().state, contact().error) == ("pending", "The CRM has a fault: 503 down.")
    assert (job().attempt, job().max_attempts) == (2, MAX_RETRIES + 1)


def test_a_crm_that_is_away_is_tried_again_and_given_up_in_the_end(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.stop()
    sign_up()
    # All but the last attempt have been used up.
    Job.objects.filter(queue="crm").update(attempt=MAX_RETRIES + 1)
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "failed")
    assert job().error.startswith("Given up after the last attempt. The CRM cannot be reached: ")
    assert contact().state == "failed"


def test_what_the_crm_refuses_fails_for_good_with_its_words(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(Reply(status=400, body=b'{"message": "Property values were not valid"}'))
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "failed")
    assert "The CRM refused the contact: 400 Property values were not valid." in job().error
    assert (contact().state, job().attempt) == ("failed", 1)
    assert contact().error == "The CRM refused the contact: 400 Property values were not valid."
    assert_ledger_consistent()


@POOLS
def test_a_worker_killed_while_the_crm_thinks_leaves_one_contact(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes, pool: str
) -> None:
    http_server.answer(CREATED, THERE, UPDATED)
    http_server.hold()
    victim = processes.worker("crm", pool=pool, env=crm_env)
    sign_up()
    wait_until(lambda: http_server.held_count == 1)
    assert (job().progress_percent, job().progress_message) == (0, "Waiting for the CRM's answer")
    victim.kill()
    http_server.release()
    processes.worker("crm", pool=pool, env=crm_env)
    wait_until(lambda: job().state == "completed", timeout=30)
    assert [request.method for request in http_server.requests] == ["POST", "POST", "PATCH"]
    assert (contact().state, contact().remote_id, job().stalled_count) == ("synced", "51", 1)
    assert_ledger_consistent()


def test_a_second_run_updates_the_same_contact(
    crm_env: dict[str, str], http_server: HttpServer, processes: Processes
) -> None:
    http_server.answer(CREATED, THERE, UPDATED)
    sign_up()
    processes.worker("crm", pool="threads", env=crm_env)
    wait_until(lambda: job().state == "completed")
    sync_contact.apply_async(kwargs={"contact_id": contact().pk})
    wait_until(lambda: Job.objects.filter(queue="crm", state="completed").count() == 2)
    assert (contact().state, contact().remote_id) == ("synced", "51")


@pytest.mark.parametrize("fields", [{"remote_id": ""}, {"synced_at": None}, {"error": "no"}])
def test_a_synced_contact_has_an_id_a_time_and_no_error(fields: dict[str, Any]) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    made = CrmContact.objects.create(user=user, state="synced", remote_id="51", synced_at=timezone.now())
    with pytest.raises(IntegrityError, match="crm_contact_synced_has_id_and_time"), transaction.atomic():
        CrmContact.objects.filter(pk=made.pk).update(**fields)


def test_a_user_is_planned_once_while_the_job_has_not_ended(crm_env: dict[str, str]) -> None:
    user = sign_up()
    services.sync_user(user=user)
    assert CrmContact.objects.count() == Job.objects.filter(queue="crm").count() == 1
