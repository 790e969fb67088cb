"""One id for all that came of one request."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.test import Client

from jobs import correlation
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

SIGN_UP = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}


def sign_up(**headers: str) -> Any:
    return Client(headers=headers).post("/signup", SIGN_UP, content_type="application/json")


@pytest.mark.django_db
def test_the_id_of_a_request_goes_through_its_jobs_and_their_children_to_the_mail() -> None:
    response = sign_up(**{"X-Request-ID": "proxy-made-this-1"})
    assert response["X-Request-ID"] == "proxy-made-this-1"
    run_due_jobs(ahead=timedelta(minutes=1))
    assert set(Job.objects.values_list("correlation_id", flat=True)) == {"proxy-made-this-1"}
    assert mail.outbox[0].extra_headers["X-Request-ID"] == "proxy-made-this-1"


@pytest.mark.django_db
@pytest.mark.parametrize("given", ["short", "x" * 65, "two\tparts of it", "", "höchst verdächtig"])
def test_an_id_that_is_not_fit_for_a_log_is_replaced(given: str) -> None:
    response = Client(headers={"X-Request-ID": given.encode("utf-8").decode("latin-1")}).get("/livez")
    assert len(response["X-Request-ID"]) == 32
    assert correlation.current() == ""


@pytest.mark.django_db
def test_a_job_that_came_of_no_request_begins_an_id_that_its_children_share() -> None:
    result = sample_tasks.enqueue_child.delay(2)
    run_due_jobs()
    assert {job.correlation_id for job in Job.objects.all()} == {result.id.replace("-", "")}
    assert {job.result for job in Job.objects.all()} == {result.id.replace("-", "")}


@pytest.mark.django_db(transaction=True)
@POOLS
def test_every_log_line_of_a_run_bears_its_id(processes: Processes, pool: str) -> None:
    worker = processes.worker("default", pool=pool)
    sample_tasks.enqueue_child.apply_async((1,), correlation_id="from-a-request")
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    wait_until(lambda: worker.output.count("completed id=") == 2)
    said = [line for line in worker.output.splitlines() if "jobs.run:" in line or "somebody.elses" in line]
    assert len(said) == 6
    assert all(" from-a-request INFO " in line for line in said)


def test_a_line_outside_of_all_has_a_dash(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.makeLogRecord({"msg": "hello"})
    assert correlation.AddCorrelationId().filter(record)
    assert vars(record)["correlation_id"] == "-"
