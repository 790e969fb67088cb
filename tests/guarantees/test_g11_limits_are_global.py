"""G11: limits hold over all workers together."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import Group
from django.db.models.functions import Now

from jobs import claims
from jobs.models import Duty, Job, Limit, QueueControl, RateStart
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import variant
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)


def starts(**jobs: Any) -> list[datetime]:
    """When the jobs started, by the database's clock."""
    found = Job.objects.filter(**jobs).order_by("started_at").values_list("started_at", flat=True)
    return [start for start in found if start is not None]


def most_within(period: timedelta, moments: list[datetime]) -> int:
    """The most of these moments that lie in any time of a length, its end not included."""
    return max(sum(begin <= moment < begin + period for moment in moments) for begin in moments)


def completed(**jobs: Any) -> int:
    return Job.objects.filter(state="completed", **jobs).count()


def let_the_dispatcher_look(times: int = 5) -> None:
    """Gives whatever must not start the time in which it would."""
    seen: set[datetime | None] = set()

    def has_looked() -> bool:
        seen.add(Duty.objects.get(name="dispatcher").ticked_at)
        return len(seen) > times

    wait_until(has_looked)


def make_backlog(count: int, **fields: Any) -> None:
    """Many waiting jobs in one statement."""
    values = {"task": sample_tasks.add.name, "args": [1, 2], "queue": "default", "state": "waiting", **fields}
    Job.objects.bulk_create(Job(**values) for _ in range(count))


def drop_the_backlog() -> None:
    """Removes what waits, and all but a hundred of what has run: the rest of a test looks at each job."""
    Job.objects.filter(state="waiting").delete()
    wait_until(lambda: not Job.objects.filter(state="active").exists())
    kept = Job.objects.order_by("pk").values_list("pk", flat=True)[:100]
    Job.objects.exclude(pk__in=list(kept)).delete()


# -- Rates -------------------------------------------------------------------------------------------------------------
def test_two_hundred_jobs_at_ten_a_second_take_no_less_than_nineteen_seconds_on_two_workers(
    processes: Processes,
) -> None:
    for _ in range(2):
        processes.worker("email", pool="threads", concurrency=5)
    for number in range(200):
        sample_tasks.add.apply_async((number, 1), queue="email")
    wait_until(lambda: completed() == 200, timeout=120)
    moments = starts()
    assert most_within(SECOND, moments) <= 10
    assert moments[-1] - moments[0] >= 19 * SECOND
    assert_ledger_consistent()


def test_nothing_bursts_after_the_workers_were_away_nor_when_redis_is_wiped(processes: Processes) -> None:
    make_backlog(60, queue="email", run_at=Now() - timedelta(minutes=1))
    for _ in range(2):
        processes.worker("email", pool="threads", concurrency=20)
    for share in (10, 30):
        wait_until(lambda share=share: completed() >= share)  # type: ignore[misc]
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            client.flushall()
    wait_until(lambda: completed() == 60, timeout=60)
    assert most_within(SECOND, starts()) <= 10
    assert_ledger_consistent()


def test_an_exhausted_key_blocks_no_slot_and_no_job_behind_it(processes: Processes) -> None:
    for _ in range(50):
        sample_tasks.add.apply_async((1, 2), rate_key="tenant:1", rate_limit="2/h", priority=0)
    others = [sample_tasks.add.apply_async((1, 2), rate_key="tenant:2", rate_limit="100/s") for _ in range(5)]
    others += [sample_tasks.add.delay(1, 2) for _ in range(5)]
    processes.worker("default", concurrency=1)
    wait_until(lambda: completed(pk__in=[result.id for result in others]) == 10)
    wait_until(lambda: completed(rate_key="tenant:1") == 2)
    let_the_dispatcher_look()
    assert len(starts(rate_key="tenant:1")) == 2
    RateStart.objects.all().delete()
    wait_until(lambda: completed(rate_key="tenant:1") == 4)
    assert_ledger_consistent()


def test_a_job_that_is_told_to_wait_holds_its_queue_on_all_workers_and_costs_no_attempt(
    processes: Processes, tmp_path: Path
) -> None:
    for _ in range(2):
        processes.worker("default", concurrency=2)
    told = sample_tasks.be_told_to_wait.delay(str(tmp_path / "told"), 3600)
    until = wait_until(lambda: QueueControl.objects.values_list("rate_limited_until", flat=True).first())
    assert timedelta(minutes=59) < until - claims.now() <= timedelta(hours=1)
    behind = [sample_tasks.add.delay(1, 2) for _ in range(10)]
    beside = sample_tasks.add.apply_async((1, 2), rate_key="another", queue="default")
    let_the_dispatcher_look()
    # Nothing of the queue starts, whatever its key; when its time is over, all do.
    assert starts(pk__in=[beside.id, *(result.id for result in behind)]) == []
    QueueControl.objects.update(rate_limited_until=Now())
    wait_until(lambda: completed() == 12)
    job = Job.objects.get(pk=told.id)
    assert (job.result, job.attempt, job.attempts.count()) == ("taken", 1, 0)
    assert_ledger_consistent()


def test_a_rate_key_that_is_told_to_wait_holds_nothing_but_itself_and_what_was_written_is_rolled_back(
    processes: Processes, tmp_path: Path
) -> None:
    for _ in range(2):
        processes.worker("default", pool="threads", concurrency=2)
    told = sample_tasks.write_and_be_told_to_wait.apply_async((str(tmp_path / "told"),), rate_key="host")
    until = wait_until(lambda: Limit.objects.values_list("rate_limited_until", flat=True).first())
    sample_tasks.add.delay(1, 2)
    behind = sample_tasks.add.apply_async((1, 2), rate_key="host")
    wait_until(lambda: completed() == 3)
    job = Job.objects.get(pk=told.id)
    assert (job.result, job.attempt, Group.objects.count()) == ("taken", 1, 1)
    assert min(starts(pk__in=[told.id, behind.id])) >= until
    assert_ledger_consistent()


# -- Concurrency -------------------------------------------------------------------------------------------------------
def lines(path: Path) -> list[tuple[str, str]]:
    """What the bodies of `append_line` have written: begin or end, and of which job."""
    found = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(what, job) for what, job, _ in found]


def test_one_job_of_a_key_runs_at_a_time_on_two_workers_and_others_beside_it(
    processes: Processes, tmp_path: Path
) -> None:
    for _ in range(2):
        processes.worker("default", concurrency=2)
    for number in range(6):
        for user in ("ada", "bob"):
            arguments = (str(tmp_path / user), f"{user}{number}", 0.2)
            sample_tasks.append_line.apply_async(arguments, concurrency_key=f"user:{user}")
    wait_until(lambda: completed() == 12)
    for user in ("ada", "bob"):
        written = lines(tmp_path / user)
        assert [what for what, _ in written] == ["begin", "end"] * 6
        assert [job for what, job in written if what == "begin"] == [f"{user}{number}" for number in range(6)]
    spans = {
        user: list(Job.objects.filter(concurrency_key=f"user:{user}").values_list("started_at", "finished_at"))
        for user in ("ada", "bob")
    }
    assert any(a < d and c < b for a, b in spans["ada"] for c, d in spans["bob"]), "each user waited for the other"
    assert_ledger_consistent()


def test_a_queue_runs_no_more_jobs_at_once_than_an_operator_allows(processes: Processes) -> None:
    QueueControl.objects.create(name="default", concurrency_limit=3)
    for _ in range(2):
        processes.worker("default", pool="threads", concurrency=4)
    for _ in range(20):
        sample_tasks.run_for.delay(0.2)
    wait_until(lambda: completed() == 20, timeout=60)
    spans = Job.objects.values_list("started_at", "finished_at")
    assert max(sum(begin <= moment < end for begin, end in spans) for moment in starts()) == 3
    assert_ledger_consistent()


def test_a_killed_worker_gives_its_slot_back_and_its_job_is_first_again(processes: Processes, tmp_path: Path) -> None:
    victim = processes.worker("default", concurrency=1)
    held, waiting = (
        sample_tasks.wait_for_file.apply_async((str(tmp_path / "gate"),), concurrency_key="user:42") for _ in range(2)
    )
    wait_until(lambda: Job.objects.get(pk=held.id).progress_percent == 10)
    processes.worker("default", concurrency=1)
    victim.kill()
    wait_until(lambda: Job.objects.get(pk=held.id).stalled_count == 1)
    wait_until(lambda: Job.objects.get(pk=held.id).state == "active")
    assert Job.objects.get(pk=waiting.id).started_at is None
    (tmp_path / "gate").touch()
    wait_until(lambda: completed() == 2)
    assert Job.objects.get(pk=waiting.id).started_at >= Job.objects.get(pk=held.id).finished_at
    assert_ledger_consistent()


# -- Quiet hours -------------------------------------------------------------------------------------------------------
def test_in_quiet_hours_nothing_starts_and_what_runs_goes_on(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", concurrency=2)
    running = sample_tasks.wait_for_file.delay(str(tmp_path / "gate"))
    wait_until(lambda: Job.objects.get(pk=running.id).progress_percent == 10)
    hour, now = timedelta(hours=1), claims.now()
    QueueControl.objects.create(name="default", quiet_hours=f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC")
    waiting = sample_tasks.add.delay(1, 2)
    (tmp_path / "gate").touch()
    wait_until(lambda: completed(pk=running.id) == 1)
    let_the_dispatcher_look()
    assert starts(pk=waiting.id) == []
    QueueControl.objects.update(quiet_hours=f"{now + hour:%H:%M}-{now + 2 * hour:%H:%M} UTC")
    wait_until(lambda: completed(pk=waiting.id) == 1)
    assert_ledger_consistent()


# -- Priorities --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "limits", [variant({}, id="without limits"), pytest.param({"rate_limit": "100/s"}, id="paced")]
)
def test_an_urgent_job_overtakes_a_backlog_of_ten_thousand(processes: Processes, limits: dict[str, Any]) -> None:
    QueueControl.objects.create(name="default", **limits)
    make_backlog(10_000, priority=5)
    processes.worker("default", concurrency=2)
    wait_until(lambda: completed() >= 20)
    urgent = sample_tasks.add.apply_async((1, 2), priority=1)
    wait_until(lambda: completed(pk=urgent.id) == 1)
    job = Job.objects.get(pk=urgent.id)
    before = Job.objects.filter(started_at__gt=job.created_at, started_at__lt=job.started_at).count()
    # Those of both slots, and grants that were given before it came.
    assert before <= 20
    assert Job.objects.filter(state="waiting").count() > 5000
    drop_the_backlog()
    assert_ledger_consistent()


@pytest.mark.parametrize("limits", [pytest.param({}, id="without limits"), variant({"rate_limit": "50/s"}, id="paced")])
def test_a_job_of_low_priority_starts_although_urgent_ones_keep_coming(
    processes: Processes, limits: dict[str, Any]
) -> None:
    QueueControl.objects.create(name="default", **limits)
    make_backlog(1, priority=9, run_at=Now() - timedelta(minutes=2))
    old = Job.objects.get()
    make_backlog(700, priority=0)
    processes.worker("default", concurrency=1)

    def is_served_while_others_wait() -> bool:
        if Job.objects.filter(state="waiting", priority=0).count() < 600:
            make_backlog(200, priority=0)
        return completed(pk=old.pk) == 1

    wait_until(is_served_while_others_wait, timeout=60)
    assert Job.objects.filter(state="waiting", priority=0).count() > 300
    drop_the_backlog()
    assert_ledger_consistent()
