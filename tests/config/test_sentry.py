"""What an error tracker hears of: a real HTTP server in the place of Sentry, real workers, and what they send."""

import gzip
import json
from typing import Any

import brotli
import pytest

from jobs.models import Job
from jobs.redaction import HIDDEN
from tests import sample_tasks
from tests.http_server import HttpServer, Received
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.processes import Processes
from tests.waiting import wait_until

_UNPACK = {"gzip": gzip.decompress, "br": brotli.decompress}


def unpacked(request: Received) -> bytes:
    body: bytes = _UNPACK[request.headers["content-encoding"]](request.body)
    return body


def events(server: HttpServer) -> list[dict[str, Any]]:
    """The events among what was sent: an envelope is lines of JSON, the second of which says what the third is."""
    envelopes = [unpacked(request).splitlines() for request in list(server.requests)]
    return [json.loads(lines[2]) for lines in envelopes if json.loads(lines[1])["type"] == "event"]


def reported_ids(server: HttpServer) -> list[str]:
    return sorted(event["contexts"]["job"]["id"] for event in events(server))


@pytest.fixture
def dsn(http_server: HttpServer) -> dict[str, str]:
    return {"SENTRY_DSN": f"http://key@127.0.0.1:{http_server.port}/1"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_failure_is_reported_once_after_the_last_attempt(
    processes: Processes, http_server: HttpServer, dsn: dict[str, str], pool: str
) -> None:
    processes.worker("default", pool=pool, env=dsn)
    saved = sample_tasks.fail_until.delay(attempt=3)
    failed = sample_tasks.fail_until.delay(attempt=99)
    permanent = sample_tasks.fail_with.delay(7)
    wait_until(lambda: not Job.objects.exclude(state__in=["completed", "failed"]).exists(), timeout=30)
    assert Job.objects.get(pk=saved.id).state == "completed"
    wait_until(lambda: len(events(http_server)) >= 2)
    by_id = {event["contexts"]["job"]["id"]: event for event in events(http_server)}
    assert reported_ids(http_server) == sorted([failed.id, permanent.id])
    job = by_id[failed.id]["contexts"]["job"]
    assert (job["task"], job["queue"], job["attempt"]) == (sample_tasks.fail_until.name, "default", 3)
    assert job["payload"] == {"args": [], "kwargs": {"attempt": 99}}
    assert by_id[failed.id]["exception"]["values"] == [{"type": "Flaky", "value": "not yet: run 3"}]
    assert "raise Flaky" in by_id[failed.id]["extra"]["traceback"]
    assert by_id[permanent.id]["exception"]["values"] == [{"type": "Failed", "value": "cannot go on with 7"}]


@pytest.mark.django_db(transaction=True)
def test_a_job_that_kills_its_process_and_one_that_runs_too_long_are_reported_by_the_main_process(
    processes: Processes, http_server: HttpServer, dsn: dict[str, str]
) -> None:
    processes.worker("default", concurrency=2, env=dsn)
    lost = sample_tasks.kill_own_process.delay(99)
    long = sample_tasks.sleep_through_the_limits.delay()
    wait_until(lambda: Job.objects.filter(state="failed").count() == 2, timeout=30)
    wait_until(lambda: reported_ids(http_server) == sorted([lost.id, long.id]))


@pytest.mark.django_db(transaction=True)
def test_a_job_that_was_lost_with_its_worker_is_reported_by_the_dispatcher_without_its_secrets(
    processes: Processes, http_server: HttpServer, dsn: dict[str, str]
) -> None:
    job = make_job(kwargs={"password": "correct horse"}, stalled_count=1)
    worker = make_worker()
    claim_job(job, worker)
    worker.delete()
    processes.worker("crm", env=dsn)
    wait_until(lambda: reported_ids(http_server) == [str(job.pk)], timeout=30)
    (event,) = events(http_server)
    assert event["contexts"]["job"]["payload"]["kwargs"] == {"password": HIDDEN}
    assert not any(b"correct horse" in unpacked(request) for request in http_server.requests)


@pytest.mark.django_db(transaction=True)
def test_a_tracker_that_hangs_keeps_no_job(processes: Processes, http_server: HttpServer, dsn: dict[str, str]) -> None:
    http_server.hold()
    processes.worker("default", env=dsn)
    for value in range(20):
        sample_tasks.fail_with.delay(value)
    wait_until(lambda: Job.objects.filter(state="failed").count() == 20)
    # The first report has no answer yet, and nobody waited for it.
    assert http_server.held_count == 1
