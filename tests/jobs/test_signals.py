"""Signals of what becomes of jobs: once each, after the commit, whichever process wrote it."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction

from jobs import settle, signals
from jobs.models import Job
from tests import sample_tasks
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def test_each_end_of_a_run_is_told_once_whoever_wrote_it(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "signals"
    processes.worker(
        "default",
        concurrency=2,
        include=("tests.sample_tasks", "tests.record_signals"),
        env={"SIGNALS_FILE": str(file)},
    )
    told = {
        sample_tasks.add.delay(1, 2): ["job_completed"],
        sample_tasks.fail_until.delay(2): ["job_retried", "job_completed"],
        sample_tasks.fail_with.delay(7): ["job_failed"],
        sample_tasks.sleep_through_the_limits.delay(): ["job_failed"],
        sample_tasks.kill_own_process.delay(1): ["job_stalled", "job_completed"],
        sample_tasks.kill_own_process.delay(9): ["job_stalled", "job_failed"],
        sample_tasks.write_after_a_while.delay("signals"): ["job_completed"],
    }
    wait_until(lambda: Job.objects.filter(finished_at__isnull=False).count() == len(told), timeout=60)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in file.read_text().splitlines()]

    wait_until(lambda: len(lines()) >= sum(map(len, told.values())))
    for result, expected in told.items():
        assert [line["signal"] for line in lines() if line["job_id"] == result.id] == expected
    (failed,) = [line for line in lines() if line["task"].endswith("fail_with")]
    assert (failed["queue"], failed["attempt"], failed["error"]) == ("default", 1, "cannot go on with 7")
    assert failed["payload"] == {"args": [7], "kwargs": {}}
    assert "fail_with" in failed["traceback"]


def test_a_signal_comes_after_the_commit_and_not_after_a_rollback() -> None:
    heard: list[UUID] = []

    def hear(job_id: UUID, **_: Any) -> None:
        heard.append(job_id)

    signals.job_failed.connect(hear)
    worker = make_worker()
    run = claim_job(make_job(), worker)
    with transaction.atomic():
        settle.fail(run, error="broken")
        transaction.set_rollback(True)
    assert not heard
    with transaction.atomic():
        settle.fail(run, error="broken")
        assert not heard
    assert heard == [run.job_id]


def test_secrets_in_a_payload_are_hidden_from_receivers() -> None:
    heard: list[Any] = []

    def hear(payload: Any, **_: Any) -> None:
        heard.append(payload)

    signals.job_stalled.connect(hear)
    run = claim_job(make_job(args=[{"api_key": "abc"}], kwargs={"password": "abc", "user_id": 1}), make_worker())
    settle.lose(run.row(), evidence="worker gone")
    assert heard == [{"args": [{"api_key": "•••"}], "kwargs": {"password": "•••", "user_id": 1}}]
