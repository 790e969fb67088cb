"""Pool processes that end at any point of a job, and jobs that are ended from outside: each is settled at once, by what
the worker itself has seen. The lease outlasts the tests, so nothing else could settle them."""

import random
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connections

from jobs import services
from jobs.models import Attempt, Job
from tests import dying_tasks, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

ENV = {"JOBS_LEASE_SECONDS": "600", "JOBS_CANCEL_GRACE_SECONDS": "0.1"}
INCLUDE = ("tests.sample_tasks", "tests.dying_tasks")
# What users write there is inside of the run: whatever it raises is the failure of its job.
INSIDE = ("before_start", "body", "after the body")
# The job of an atomic task ends in its body's transaction, and that of another one after its body.
ENDED_BEFORE = ("on_success", "after_return", "task_postrun")


def no_job_is_left() -> bool:
    return not Job.objects.filter(state__in=["waiting", "delayed", "active"]).exists()


def effects(name: str) -> int:
    return Group.objects.filter(name__startswith=f"{name} ").count()


def outcome(job_id: Any, name: str) -> tuple[str, int, int, int]:
    """The state of a job, its attempts, its stalls, and how often it has had its effect."""
    state, attempt, stalled_count = Job.objects.values_list("state", "attempt", "stalled_count").get(pk=job_id)
    return state, attempt, stalled_count, effects(name)


def expected(task: Any, place: str, how: str) -> tuple[str, int, int, int]:
    if place in ENDED_BEFORE:
        return "completed", 1, 0, 1
    is_written = task is dying_tasks.write_plainly and place == "after the body"
    is_failure = how == "cancelled error" or (how == "sys.exit" and place in INSIDE)
    return ("failed", 1, 0, int(is_written)) if is_failure else ("completed", 1, 1, 1 + is_written)


def start_dying(*, places: tuple[str, ...], ways: tuple[str, ...]) -> dict[str, tuple[str, Any]]:
    """A job of both kinds for each place and way: its name, its id, and what is to become of it."""
    found = {}
    for task in (dying_tasks.write_whole, dying_tasks.write_plainly):
        for place in places:
            for how in ways:
                name = f"{task.name.rpartition('.')[2]} dies at {place} by {how}"
                job = task.apply_async((name,), headers={"dies_at": place, "dies_how": how})
                found[name] = (job.id, expected(task, place, how))
    return found


@pytest.mark.parametrize(
    "ways",
    [("kill", "cancelled error"), pytest.param(tuple(dying_tasks.WAYS), marks=pytest.mark.variant, id="every way")],
)
def test_wherever_and_however_a_pool_process_ends_its_job_ends_once_and_its_neighbour_runs_on(
    processes: Processes, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    worker = processes.worker("default", concurrency=4, include=INCLUDE, env=ENV)
    neighbour = sample_tasks.wait_for_file.apply_async((str(tmp_path / "gate"),), soft_time_limit=600, time_limit=600)
    wait_until(lambda: Job.objects.get(pk=neighbour.id).progress_percent == 10)
    dying = start_dying(places=dying_tasks.PLACES, ways=ways)
    if len(ways) == 2:
        dying |= start_dying(places=("body",), ways=("sys.exit", "exit of the interpreter"))
    wait_until(lambda: Job.objects.filter(state__in=["waiting", "active"]).count() == 1, timeout=100)
    found = {name: outcome(job_id, name) for name, (job_id, _) in dying.items()}
    assert found == {name: wanted for name, (_, wanted) in dying.items()}
    (tmp_path / "gate").touch()
    wait_until(no_job_is_left)
    assert outcome(neighbour.id, "nothing") == ("completed", 1, 0, 0)
    assert worker.status is None
    assert_ledger_consistent()


@pytest.mark.parametrize("count", [24, pytest.param(400, marks=[pytest.mark.variant, pytest.mark.timeout(400)])])
def test_each_run_that_has_killed_its_process_is_counted_also_where_several_die_at_once(
    processes: Processes, count: int
) -> None:
    worker = processes.worker("default", concurrency=4, include=INCLUDE, env=ENV)
    for _ in range(count):
        sample_tasks.kill_own_process.delay(times=9)
    wait_until(no_job_is_left, timeout=count * 2)
    begun = Counter(re.findall(r"started id=(\S+)", worker.output))
    assert Counter(begun.values()) == {2: count}
    assert set(Job.objects.values_list("state", "attempt", "stalled_count")) == {("failed", 1, 2)}
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", ["threads", pytest.param("solo", marks=pytest.mark.variant)])
def test_a_body_that_leaves_its_thread_by_any_exception_is_settled_at_once(processes: Processes, pool: str) -> None:
    worker = processes.worker("default", pool=pool, concurrency=2, include=INCLUDE, env=ENV)
    dying = start_dying(places=("body", "after_return"), ways=("sys.exit", "cancelled error"))
    dying |= start_dying(places=("task_prerun",), ways=("sys.exit",))
    wait_until(no_job_is_left)
    found = {name: outcome(job_id, name) for name, (job_id, _) in dying.items()}
    assert found == {name: wanted for name, (_, wanted) in dying.items()}
    assert worker.status is None
    assert_ledger_consistent()


def test_a_run_past_its_hard_limit_is_ended_although_the_hook_for_failures_fails_itself(processes: Processes) -> None:
    worker = processes.worker("default", concurrency=1, include=INCLUDE, env=ENV)
    late = dying_tasks.sleep_with_a_bad_hook.apply_async((60,), time_limit=0.3)
    after = sample_tasks.add.delay(1, 2)
    wait_until(no_job_is_left)
    assert [outcome(one.id, "nothing") for one in (late, after)] == [("failed", 1, 0, 0), ("completed", 1, 0, 0)]
    assert Job.objects.get(pk=late.id).attempts.get().outcome == "failed"
    assert worker.status is None
    assert_ledger_consistent()


@pytest.mark.parametrize(
    "pool",
    ["prefork", pytest.param("threads", marks=pytest.mark.variant), pytest.param("solo", marks=pytest.mark.variant)],
)
def test_a_job_that_cannot_be_handed_to_the_pool_fails_with_the_reason_and_the_others_run(
    processes: Processes, pool: str
) -> None:
    worker = processes.worker("default", pool=pool, concurrency=2, include=INCLUDE, env=ENV)
    others, broken = [], []
    for number in range(30):
        others.append(sample_tasks.add.delay(number, 1).id)
        if number % 10 == 0:
            broken.append(dying_tasks.cannot_be_handed_over.delay().id)
    wait_until(no_job_is_left)
    assert set(Job.objects.filter(pk__in=others).values_list("state", "attempt", "stalled_count")) == {
        ("completed", 1, 0)
    }
    failed = Job.objects.filter(pk__in=broken)
    assert set(failed.values_list("state", "error")) == {("failed", "It could not be started: there is no such tenant")}
    assert all(
        f"id={job_id} task={dying_tasks.cannot_be_handed_over.name} could not be started" in worker.output
        for job_id in broken
    )
    assert Attempt.objects.filter(outcome="failed").count() == len(broken)
    assert_ledger_consistent()


# Of Celery's messages, of its requests, and of what a run notes in them.
CELERYS = (
    "expires eta shadow lang group timelimit retries id task chain chord callbacks stamped_headers stamps get update"
)
OURS = "claim claimed run stage settled is_lost headers called_directly is_eager _protected has_left_body replacement"


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.variant)])
def test_headers_of_a_caller_that_are_named_as_others_own_keep_no_job_from_running(
    processes: Processes, pool: str
) -> None:
    processes.worker("default", pool=pool, concurrency=1, include=INCLUDE, env=ENV)
    names = [*CELERYS.split(), *OURS.split()]
    jobs = {}
    for name in names:
        for value in ("2999-01-01T00:00:00", 5, [5], {"a": 1}):
            jobs[f"{name}={value}"] = sample_tasks.headers_seen.apply_async(headers={name: value}).id
    wait_until(no_job_is_left, timeout=60)
    found = {what: (outcome(job_id, "nothing")[:3], Job.objects.get(pk=job_id).result) for what, job_id in jobs.items()}
    # They travel apart: the body sees them as its caller gave them.
    wanted = {f"{name}={value}": {name: value} for name in names for value in ("2999-01-01T00:00:00", 5, [5], {"a": 1})}
    assert found == {what: (("completed", 1, 0), headers) for what, headers in wanted.items()}
    assert_ledger_consistent()


class Canceller(threading.Thread):
    """Cancels running jobs at random, and remembers which. Ends when it is told to."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.cancelled: set[Any] = set()
        self.over = threading.Event()
        self._chance = chance

    def run(self) -> None:
        while not self.over.wait(self._chance.uniform(0.01, 0.1)):
            running = list(Job.objects.filter(state="active").values_list("pk", flat=True))
            if running:
                job_id = self._chance.choice(running)
                try:
                    services.cancel_job(job_id=job_id, actor="test")
                except services.ActionRefused:
                    continue  # it has ended meanwhile
                self.cancelled.add(job_id)
        connections.close_all()


LATE = "It ran longer than its time limit, and was ended."
KINDS: dict[str, dict[str, Any]] = {
    "short": {},
    # Its end and its limit come at the same moment.
    "close": {"time_limit": 0.1},
    "overrunning": {"time_limit": 0.2},
    # Until somebody cancels it.
    "endless": {"time_limit": 600, "soft_time_limit": 600},
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.variant)])
def test_each_job_ends_as_its_own_cancelling_or_limit_says_and_no_neighbour_is_ended_with_it(
    processes: Processes, count: int
) -> None:
    worker = processes.worker("default", concurrency=4, include=INCLUDE, env=ENV)
    chance = random.Random(count)
    seconds = {"short": 0.01, "close": 0.09, "overrunning": 60.0, "endless": 60.0}
    kinds = {}
    for number in range(count):
        (kind,) = chance.choices(list(KINDS), [88, 4, 4, 4])
        job = dying_tasks.write_and_run_for.apply_async((f"{kind} {number}", seconds[kind]), **KINDS[kind])
        kinds[job.id] = kind
    canceller = Canceller(chance)
    canceller.start()
    try:
        wait_until(no_job_is_left, timeout=max(100, count / 2))
    finally:
        canceller.over.set()
        canceller.join()
    wrong = []
    for job in Job.objects.all():
        kind, made = kinds[str(job.pk)], effects(job.args[0])
        # Where a job has no soft limit of its own, both strike at the same moment.
        found = (job.state, made, re.sub(" of 0.[12] seconds", "", job.error))
        ends = {
            "short": [("completed", 1, "")],
            "close": [("completed", 1, ""), ("failed", 0, LATE)],
            "overrunning": [("failed", 0, LATE)],
            "endless": [],
        }[kind]
        if job.pk in canceller.cancelled:
            ends = [("cancelled", 0, "Cancelled by test.")]
        outcomes = {"completed": [], "failed": ["failed"], "cancelled": ["cancelled"]}[job.state]
        counts = (job.attempt, job.stalled_count, list(job.attempts.values_list("outcome", flat=True)))
        if found not in ends or counts != (1, 0, outcomes):
            wrong.append((kind, job.pk in canceller.cancelled, found, counts))
    assert wrong == []
    assert {"short", "endless"} <= {kinds[str(job_id)] for job_id in canceller.cancelled}
    assert worker.status is None
    assert_ledger_consistent()
