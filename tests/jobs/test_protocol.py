"""The protocol, by chance: two workers, the dispatcher and an operator in any order, over real SQL.

A model in Python says what each step must do. The ledger is compared with it after every step: states, owners,
attempts, history, events, signals, and the database effects of runs. A run that lost its job stays, and tries to write.
"""

import os
import pickle
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
import pytest
import redis
from billiard.exceptions import WorkerLostError
from celery import current_app, shared_task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobs import claims, correlation, fenced, services, signals
from jobs.dispatcher import due
from jobs.dispatcher.rescue import Rescuer
from jobs.errors import Interrupted, LeaseLost
from jobs.ids import derived_id
from jobs.models import Attempt, Job, JobEvent, QueueControl, Worker
from jobs.queues import QUEUES
from jobs.services import ActionRefused
from jobs.states import END_STATES, LIVE_STATES, TRANSITIONS
from jobs.worker import identity, lease
from jobs.worker.audit import Audit
from jobs.worker.requests import claimed, delivery_of, headers_of
from tests.jobs.connections import row_locked_by_somebody_else
from tests.jobs.expected import HALF_A_LEASE, LATER, LEASE_SECONDS, Expected, Run, everything, fresh_worker, running_on
from tests.variants import examples

ARROWS = {(str(arrow.source), str(arrow.target)) for arrow in TRANSITIONS}
LIVE, ENDED = [str(state) for state in LIVE_STATES], [str(state) for state in END_STATES]
RUN_ENDS = (
    *("return", "raise", "retry now", "retry later", "ignore", "reject", "requeue", "interrupted", "replace"),
    *("revoked", "lost", "lost", "lost", "lost", "hard limit"),
)
ACTIONS = (
    *("run again", "run again", "run again", "cancel", "revoke", "promote", "edit", "let expire"),
    *("pause", "resume", "resume"),
)
# What happens often in life happens often here.
MOVES = (
    *("begin", "begin", "begin", "begin", "begin_again", "end", "end", "end", "end", "write", "enqueue"),
    *("happen_to_a_worker", "happen_to_a_worker", "rescue", "look_for_due_and_expired", "operate", "operate"),
)
Draw = Callable[[Any], Any]
PRIORITIES = (5, 5, 0, 9)
MAX_STALLS = QUEUES["default"].max_stalls
PAST = timedelta(seconds=-1)
SIGNALS = {
    "completed": signals.job_completed,
    "failed": signals.job_failed,
    "retried": signals.job_retried,
    "stalled": signals.job_stalled,
}


@shared_task(
    bind=True, queue="default", autoretry_for=(OSError,), max_retries=1, retry_backoff=LATER, retry_backoff_max=LATER
)
def plain(self: Any, name: str) -> str:
    return name


@shared_task(bind=True, queue="default", atomic=True, max_retries=1)
def whole(self: Any, name: str) -> str:
    Group.objects.create(name=f"{name} {uuid4()}")
    return name


# The tasks that a worker knows: one that was deployed earlier knows one less.
KNOWN = [[plain.name, whole.name], [plain.name, whole.name], [plain.name]]


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[UUID, Expected] = {}
        self.runs: list[Run] = []
        self.workers = [fresh_worker() for _ in range(2)]
        self.dead: set[UUID] = set()
        # How many halves of its lease have passed since a worker gave a sign of life.
        self.halves_passed: Counter[UUID] = Counter()
        self.paused = False
        self.names = 0
        self.effects = 0
        self.events: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()
        self.before: dict[UUID, str] = {}
        self.operator = get_user_model().objects.create_superuser(email="operator@example.com", password="x" * 12)
        self._receivers = {kind: self._receiver(kind) for kind in SIGNALS}
        for kind, receiver in self._receivers.items():
            SIGNALS[kind].connect(receiver)
        self._enqueue(plain, link="link")
        self._enqueue(whole)

    def _receiver(self, kind: str) -> Callable[..., None]:
        def hear(**_: Any) -> None:
            self.heard[kind] += 1

        return hear

    def teardown(self) -> None:
        for kind, receiver in self._receivers.items():
            SIGNALS[kind].disconnect(receiver)
        for model in (Attempt, Job, JobEvent, Worker, QueueControl, Group, get_user_model()):
            model.objects.all().delete()
        # Runs that the model has let die have not said their end to this thread.
        correlation.assume("")

    # -- What the model says -----------------------------------------------------------------------------------------
    def ends(self, job: Expected, state: str, *, event: str | None = None, attempt: str | None = None) -> None:
        """A run, or a job that was not running, comes to an end."""
        if attempt is not None:
            job.history.append(attempt)
        if event is not None:
            self.events[event] += 1
        job.state, job.owner = state, None
        if job.successor is not None and state in ENDED:
            self.expected[job.successor.id] = job.successor
            job.successor = None

    def completes(self, job: Expected, *, links: bool = True) -> None:
        self.ends(job, "completed", event="completed")
        link_id = derived_id(job.id, "link", 0)
        if links and job.link is not None and link_id not in self.expected:
            self.expected[link_id] = Expected(link_id, plain, job.link)

    def fails(self, job: Expected) -> None:
        self.ends(job, "failed", event="failed", attempt="failed")

    def retries(self, job: Expected, run: Run, *, due: bool) -> None:
        if run.attempt >= job.allowed_attempts:
            self.fails(job)
            return
        self.ends(job, "delayed", event="retried", attempt="retried")
        job.attempt, job.due = job.attempt + 1, due

    def stalls(self, job: Expected) -> None:
        fails = job.stalled_count >= MAX_STALLS
        self.ends(job, "failed" if fails else "waiting", event="failed" if fails else "stalled", attempt="stalled")
        job.stalled_count += 1

    @rule(move=st.sampled_from(MOVES), data=st.data())
    def anything(self, move: str, data: Any) -> None:
        getattr(self, move)(data.draw)

    def job(self, draw: Draw) -> Expected:
        return draw(st.sampled_from(list(self.expected.values())))

    # -- Callers -----------------------------------------------------------------------------------------------------
    def enqueue(self, draw: Draw) -> None:
        key = draw(st.sampled_from([None, "key"]))
        holder = next((job.id for job in self.expected.values() if key and job.key == key and job.state in LIVE), None)
        delayed = draw(st.booleans())
        link = draw(st.sampled_from([None, "link"]))
        task = draw(st.sampled_from([plain, whole]))
        if key and draw(st.booleans()):
            self._enqueue_the_latest(task, self.expected[holder] if holder else None, delayed=delayed, link=link)
            return
        job_id = self._enqueue(task, delayed=delayed, link=link, key=key, priority=draw(st.sampled_from(PRIORITIES)))
        assert holder in (None, job_id)

    def _enqueue_the_latest(self, task: Any, holder: Expected | None, *, delayed: bool, link: str | None) -> None:
        """The call becomes a job, takes the place of one that never started, or comes after one that has."""
        self.names += 1
        name = f"latest {self.names}"
        options = {"countdown": LATER} if delayed else {}
        result = task.apply_async((name,), dedup_key="key", dedup_latest=True, link=link and plain.si(link), **options)
        job_id, state = UUID(result.id), "delayed" if delayed else "waiting"
        latest = Expected(job_id, task, name, state, due=not delayed, key="key", link=link)
        if holder is None:
            assert job_id not in self.expected
            self.expected[job_id] = latest
        elif not holder.started:
            assert job_id == holder.id
            holder.task, holder.name, holder.state, holder.link = task, name, state, link
            holder.due, holder.expired = not delayed, False
        else:
            assert job_id == (holder.successor.id if holder.successor else job_id)
            assert job_id not in self.expected
            holder.successor = latest

    def _enqueue(
        self,
        task: Any,
        *,
        delayed: bool = False,
        link: str | None = None,
        key: str | None = None,
        priority: int = 5,
    ) -> UUID:
        name = f"job {len(self.expected)}"
        options = {"priority": priority, **({"countdown": LATER} if delayed else {})}
        result = task.apply_async((name,), dedup_key=key, link=link and plain.si(link), **options)
        job_id, state = UUID(result.id), "delayed" if delayed else "waiting"
        # With the key of a live job, it is that job.
        self.expected.setdefault(job_id, Expected(job_id, task, name, state, due=not delayed, key=key, link=link))
        return job_id

    # -- Workers -----------------------------------------------------------------------------------------------------
    def begin(self, draw: Draw) -> None:
        """A worker claims from the head of its queue; one that was given up has been replaced."""
        worker_id = draw(st.sampled_from(self.workers))
        if worker_id in self.dead:
            worker_id = self._replacement(worker_id)
        tasks, token = draw(st.sampled_from(KNOWN)), f"{worker_id.hex}:{uuid4().hex}"
        able = self._claimable(worker_id, tasks)
        if draw(st.sampled_from([False, False, False, True])):
            found = claims.claim_oldest("default", age=timedelta(0), token=token, tasks=tasks, worker_id=worker_id)
            assert [claim.run_at for claim in found] == sorted(able.values())[:1]
        else:
            count, locked = draw(st.integers(1, 3)), draw(st.sampled_from([None, None, None, *able]))
            with row_locked_by_somebody_else(locked):
                found = claims.claim_next("default", count=count, token=token, tasks=tasks, worker_id=worker_id)
            assert [claim.job_id for claim in found] == [one for one in able if one != locked][:count]
        if draw(st.booleans()):
            # The answer is lost, and is asked for once more.
            again = claims.claimed_before(token=token, worker_id=worker_id)
            assert sorted(claim.job_id for claim in again) == sorted(claim.job_id for claim in found)
        for claim in found:
            self._begin(claim, worker_id)

    def begin_again(self, draw: Draw) -> None:
        """A worker takes a grant too many, by a token that is new or that was the last one, or repeats a claim."""
        token = draw(st.sampled_from(["fresh", "the last one", "the last one", "repeated"]))
        waiting = [job for job in self.expected.values() if job.state == "waiting" and job.last_claim]
        job = draw(st.sampled_from(waiting)) if waiting and token == "the last one" else self.job(draw)
        worker_id, last_token = job.last_claim or (draw(st.sampled_from(self.workers)), "")
        tasks, is_repeated = draw(st.sampled_from(KNOWN)), token == "repeated"
        wanted = {job.id: last_token if last_token and token != "fresh" else f"{worker_id.hex}:{uuid4().hex}"}
        is_new = job.state == "waiting" and wanted[job.id] != last_token
        is_own = is_repeated and job.owner is not None and wanted[job.id] == last_token
        # What it has claimed is its own, whatever has happened since, until somebody takes it.
        wins = is_own or (is_new and self._may_start(job, worker_id, tasks))
        found = claims.claim(wanted, worker_id=worker_id, tasks=tasks, repeated=is_repeated)
        assert {claim.job_id: claim.token for claim in found} == (wanted if wins else {})
        if wins and is_new:
            self._begin(found[0], worker_id)

    def _may_start(self, job: Expected, worker_id: UUID, tasks: list[str]) -> bool:
        return not (job.expired or self.paused or worker_id in self.dead) and job.task.name in tasks

    def _claimable(self, worker_id: UUID, tasks: list[str]) -> dict[UUID, datetime]:
        """What that worker may claim, in its order, and since when it is due."""
        rows = Job.objects.filter(state="waiting").order_by("priority", "run_at", "id").values_list("pk", "run_at")
        return {job_id: run_at for job_id, run_at in rows if self._may_start(self.expected[job_id], worker_id, tasks)}

    def _begin(self, claim: claims.Claim, worker_id: UUID) -> None:
        """The claim goes to a pool process, which begins the run."""
        claim = pickle.loads(pickle.dumps(claim))
        job = self.expected[claim.job_id]
        args: list[Any] = ["of another job"]
        kwargs: dict[str, Any] = {"another": "job's"}
        request = Context(
            **headers_of(claim),
            args=args,
            kwargs=kwargs,
            delivery_info=delivery_of(claim),
            called_directly=False,
            is_eager=False,
        )
        with running_on(worker_id, job.task, request):
            job.task.before_start(str(job.id), args, kwargs)
        assert (args, kwargs, request.retries) == ([job.name], {}, job.attempt - 1)
        job.state, job.owner = "active", Run(job.id, job.task, worker_id, request, job.attempt, job.name)
        job.last_claim, job.started = (worker_id, claim.token), True
        self.runs.append(job.owner)

    def end(self, draw: Draw) -> None:
        """A run that owns its job ends it; nothing of one that lost it lands."""
        if not self.runs:
            return
        owners = [job.owner for job in self.expected.values() if job.owner is not None]
        run, end = draw(st.sampled_from([*self.runs, *owners * len(self.runs)])), draw(st.sampled_from(RUN_ENDS))
        job = self.expected[run.job_id]
        before = None if job.owner is run else everything()
        self._write_end(run, end)
        if before is not None:
            assert everything() == before
        elif end == "return":
            self.effects += run.task is whole
            self.completes(job)
        elif end == "ignore":
            self.completes(job, links=False)
        elif end in ("raise", "reject"):
            self.fails(job)
        elif end in ("retry now", "retry later", "requeue"):
            self.retries(job, run, due=end != "retry later")
            if job.state == "delayed" and end != "requeue":
                # A retry carries the arguments of its run, over an edit that came meanwhile.
                job.name = run.name
        elif end in ("interrupted", "replace"):
            self.ends(job, "waiting")
            if end == "replace":
                # What it goes on as has its own attempts, beside those that were made.
                job.task, job.allowed_attempts = plain, 2 + job.attempt - 1
        elif end == "revoked":
            self.ends(job, "cancelled", event="cancelled", attempt="cancelled")
        elif end == "lost":
            self.stalls(job)
        elif run.task is plain:
            # It retries by itself, and so does its hard limit.
            self.retries(job, run, due=False)
        else:
            self.fails(job)

    def _write_end(self, run: Run, end: str) -> None:
        """As Celery's tracer, or the worker's main process, does it."""
        backend: Any = current_app.backend
        job_id, task, request = str(run.job_id), run.task, run.request
        # The tracer makes one attempt to end a run; this one is made to try it again.
        request.update(settled=False, retry_signature=None, replacement=None)
        with running_on(run.worker_id, task, request):
            try:
                if end == "return":
                    backend.mark_as_done(job_id, task(task.name), request=request)
                elif end == "raise":
                    raise ValueError("broken")
                elif end.startswith("retry"):
                    raise task.retry(countdown=0 if end == "retry now" else LATER)
                elif end == "ignore":
                    backend.mark_as_left(job_id, Ignore(), request)
                elif end == "interrupted":
                    backend.mark_as_left(job_id, Interrupted("no fault of its own"), request)
                elif end in ("reject", "requeue"):
                    backend.mark_as_left(job_id, Reject("no", requeue=end == "requeue"), request)
                elif end == "replace":
                    request.replacement = plain.s(f"{self.expected[run.job_id].name}")
                    backend.mark_as_left(job_id, Ignore(), request)
                elif end == "revoked":
                    backend.mark_as_revoked(job_id, "enough", request=request)
                else:
                    error = WorkerLostError("signal 9") if end == "lost" else TimeLimitExceeded(1)
                    backend.mark_as_failure(job_id, error, request=run.told_by_the_main_process())
            except Retry as retry:
                backend.mark_as_retry(job_id, retry.exc, request=request)
            except Exception as error:  # noqa: BLE001  # as the tracer does
                backend.mark_as_failure(job_id, error, "traceback", request=request)

    def write(self, draw: Draw) -> None:
        """What a body may write while it runs."""
        if not self.runs:
            return
        run, write = draw(st.sampled_from(self.runs)), draw(st.sampled_from(["progress", "custom state", "fence"]))
        owns = self.expected[run.job_id].owner is run
        before = everything()
        refused = False
        with running_on(run.worker_id, run.task, run.request):
            try:
                if write == "progress":
                    # As if the last time were long ago: what comes too soon is written later, and tells nobody.
                    run.request.reported_at = 0.0
                    run.task.progress(100, 100, "all of it")
                elif write == "custom state":
                    current_app.backend.store_result(str(run.job_id), {"n": 1}, "COUNTING", request=run.request)
                else:
                    with fenced():
                        Group.objects.create(name=f"fenced {uuid4()}")
            except LeaseLost:
                refused = True
        if owns:
            self.effects += write == "fence"
        else:
            assert everything() == before
        assert refused == (not owns and write != "custom state")

    def happen_to_a_worker(self, draw: Draw) -> None:
        waits = [self._silence, self._silence, self._half_a_lease, self._half_a_lease]
        events = [*waits, self._renewal, self._restart, self._audit]
        draw(st.sampled_from(events))(draw(st.sampled_from(self.workers)))

    def _silence(self, worker_id: UUID) -> None:
        """A worker is killed, frozen or cut off: its lease runs out."""
        self.halves_passed[worker_id] = 2
        Worker.objects.filter(pk=worker_id).update(lease_expires_at=Now() + PAST)

    def _half_a_lease(self, worker_id: UUID) -> None:
        """For so long a worker gives no sign of life: once is no silence, twice is."""
        self.halves_passed[worker_id] += 1
        Worker.objects.filter(pk=worker_id).update(lease_expires_at=F("lease_expires_at") - HALF_A_LEASE)

    def _renewal(self, worker_id: UUID) -> None:
        """A worker gives a sign of life, perhaps too late."""
        with running_on(worker_id):
            assert lease.renew() is (worker_id not in self.dead)
        self.halves_passed[worker_id] = 0

    def _restart(self, worker_id: UUID) -> None:
        """A worker ends, hands back what it runs, and another takes its place."""
        with running_on(worker_id):
            lease.resign()
        for job in self.expected.values():
            if job.owner is not None and job.owner.worker_id == worker_id:
                self.ends(job, "waiting")
        self.dead.add(worker_id)
        self._replacement(worker_id)

    def _replacement(self, worker_id: UUID) -> UUID:
        """A supervisor starts another worker in the place of one that is gone."""
        self.workers[self.workers.index(worker_id)] = fresh = fresh_worker()
        return fresh

    def _audit(self, worker_id: UUID) -> None:
        """A worker finds that it runs none of the jobs that it owns."""
        audit = Audit()
        mine = Job.objects.filter(worker_id=worker_id).values_list("claim_token", "pk")
        claimed.clear()
        claimed.update(mine)
        audit._since = dict.fromkeys(claimed, -1e9)
        with running_on(worker_id):
            audit.run_once()
        for job in list(self.expected.values()):
            if job.owner is not None and job.owner.worker_id == worker_id:
                self.stalls(job)

    # -- The dispatcher ----------------------------------------------------------------------------------------------
    def rescue(self, draw: Draw) -> None:
        """The silent are given up and their jobs taken, except one whose row a run of it has locked."""
        locked = draw(st.sampled_from([None, None, *self.runs]))
        rescuer = Rescuer()
        rescuer._not_before = time.monotonic()
        with row_locked_by_somebody_else(locked.job_id if locked else None):
            rescuer.run_once()
        self.dead |= {worker_id for worker_id, count in self.halves_passed.items() if count >= 2}
        for job in list(self.expected.values()):
            if job.owner and job.owner.worker_id in self.dead and not (locked and locked.job_id == job.id):
                self.stalls(job)

    def look_for_due_and_expired(self, draw: Draw) -> None:
        time_passes = draw(st.booleans())
        if time_passes:
            # Not at one moment: what starts first would be decided by ids, which are others at each try.
            for number, job_id in enumerate(self.expected):
                moment = Now() + PAST + timedelta(milliseconds=number)
                Job.objects.filter(pk=job_id, state="delayed").update(run_at=moment)
        for job in list(self.expected.values()):
            job.due = job.due or time_passes
            if job.state in ("waiting", "delayed") and job.expired:
                self.ends(job, "cancelled", event="cancelled")
            elif job.state == "delayed" and job.due:
                job.state = "waiting"
        assert not due.run_once()

    # -- The operator ------------------------------------------------------------------------------------------------
    def operate(self, draw: Draw) -> None:
        job, action = self.job(draw), draw(st.sampled_from(ACTIONS))
        if action == "run again":
            self._run_again(job)
        elif action in ("cancel", "revoke"):
            self._cancel(job, in_code=action == "revoke")
        elif action == "promote":
            self._promote(job)
        elif action == "edit":
            self._edit(job)
        elif action == "let expire":
            Job.objects.filter(pk=job.id).update(expires_at=Now() + PAST)
            job.expired = True
        else:
            change = services.pause_queue if action == "pause" else services.resume_queue
            assert change(queue="default", actor=self.operator) is (self.paused is (action == "resume"))
            self.paused = action == "pause"

    def _run_again(self, job: Expected) -> None:
        holders = self._holders_of_its_key(job)
        try:
            services.retry_job(job_id=job.id, actor=self.operator)
        except ActionRefused:
            assert job.state in LIVE or holders
            return
        assert job.state in ENDED
        assert not holders
        self._begins_anew(job)

    def _edit(self, job: Expected) -> None:
        holders = self._holders_of_its_key(job)
        name = f"{job.name}, edited"
        try:
            services.edit_job(job_id=job.id, args=[name], kwargs={}, actor=self.operator)
        except ActionRefused:
            assert job.state == "active" or (job.state in ENDED and holders)
            return
        # The next run gets what the row says then.
        job.name = name
        if job.state in ENDED:
            assert not holders
            self._begins_anew(job)

    def _promote(self, job: Expected) -> None:
        try:
            services.promote_job(job_id=job.id, actor=self.operator)
        except ActionRefused:
            assert job.state != "delayed"
            return
        assert job.state == "delayed"
        job.state, job.due = "waiting", True

    def _holders_of_its_key(self, job: Expected) -> list[Expected]:
        others = [other for other in self.expected.values() if other is not job]
        return [other for other in others if job.key and other.key == job.key and other.state in LIVE]

    def _begins_anew(self, job: Expected) -> None:
        job.state, job.attempt, job.stalled_count, job.due, job.expired = "waiting", 1, 0, True, False
        job.started = False

    def _cancel(self, job: Expected, *, in_code: bool) -> None:
        if in_code:
            services.revoke_job(job_id=job.id)
        else:
            try:
                services.cancel_job(job_id=job.id, actor=self.operator)
            except ActionRefused:
                assert job.state in ENDED
        if job.state in LIVE:
            recorded = job.state == "active"
            self.ends(job, "cancelled", event="cancelled", attempt="cancelled" if recorded else None)

    # -- What must hold after each step ------------------------------------------------------------------------------
    @invariant()
    def the_ledger_is_as_expected(self) -> None:
        rows = {
            row["id"]: row
            for row in Job.objects.values(
                "id", "state", "attempt", "stalled_count", "finished_at", "claim_token", "worker_id", "task"
            )
        }
        assert rows.keys() == self.expected.keys(), "a job is gone, or one was made twice"
        for job_id, job in self.expected.items():
            row = rows[job_id]
            told = (row["state"], row["attempt"], row["stalled_count"], row["task"])
            assert told == (job.state, job.attempt, job.stalled_count, job.task.name)
            assert (row["finished_at"] is not None) == (job.state in ENDED)
            # The owner, if there is one, is the run whose token stands in the row: one at most.
            if job.owner is not None:
                assert row["claim_token"] == job.owner.request.run.token
                assert (row["state"], row["worker_id"]) == ("active", job.owner.worker_id)
            else:
                assert row["state"] != "active"
            was = self.before.get(job_id, row["state"])
            assert row["state"] == was or (was, row["state"]) in ARROWS, f"no arrow from {was} to {row['state']}"
        self.before = {job_id: row["state"] for job_id, row in rows.items()}

    @invariant()
    def every_end_is_told_once(self) -> None:
        assert Counter(JobEvent.objects.values_list("kind", flat=True)) == self.events
        assert self.heard == Counter({kind: self.events[kind] for kind in SIGNALS if self.events[kind]})
        history: dict[UUID, list[str]] = {}
        for job_id, outcome in Attempt.objects.order_by("id").values_list("job_id", "outcome"):
            history.setdefault(job_id, []).append(outcome)
        assert history == {job.id: job.history for job in self.expected.values() if job.history}

    @invariant()
    def every_effect_is_that_of_a_run_that_owned_its_job(self) -> None:
        assert Group.objects.count() == self.effects


# Half a minute on a machine that does nothing else, and many times as long with `--all`.
@pytest.mark.timeout(1800)
@pytest.mark.django_db(transaction=True)
def test_whatever_workers_dispatcher_and_operator_do_in_whatever_order_the_protocol_holds(
    empty_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An example takes half a second: each of its steps is followed by a look at all tables.
    count = examples(share=0.06)
    # Put back at the end: this process is no worker.
    monkeypatch.setattr(identity, "_incarnation", None)
    monkeypatch.setattr(django_settings, "JOBS_LEASE_SECONDS", LEASE_SECONDS)
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=count,
            # The default has as many steps in all as 50 examples of 40.
            stateful_step_count=20 if count <= 100 else 40,
            deadline=None,
            database=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with redis.Redis.from_url(django_settings.REDIS_URL) as client:
        client.flushall()
