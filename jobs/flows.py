"""Flows: many jobs, and one that runs when all of them have ended. Celery's chords are flows as well.

The job that is to come is in the ledger from the beginning, *delayed* and *held*: that it comes is one compare-and-set
of its state, so it comes once. Whether a flow is over is asked of its members' rows. Who writes a member's end looks
right after its commit; whoever dies in between, the dispatcher looks at all open flows once a second.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from celery import current_app
from celery.canvas import Signature, maybe_signature
from celery.exceptions import ChordError, Ignore
from celery.result import AsyncResult
from django.db import router, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from jobs import bulk, canvas, enqueue, follow_ups, own_limits, publish, replacing, settle
from jobs.callers import refuse_unsafe
from jobs.ends import end
from jobs.ids import new_id
from jobs.models import LIVE, Flow, Job
from jobs.options import shown
from jobs.patience import DATABASE_AWAY, may_pass
from jobs.states import Cause, State
from jobs.transitions import transition

logger = logging.getLogger(__name__)

OnFailure = Flow.OnFailure

_BATCH = 1000
_READ_OF_MEMBERS = ("task", "state", "result", "error", "exception", "follow_ups")
# What Celery hands from task to task as the body of their chord. Here it only says that there is one.
_BODY = {"task": "celery.accumulate"}


class ChildRefused(ValueError):
    """One of the children of a flow is wrong; the cause says how."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"child {index}, counted from 0, was refused. {type(cause).__name__}: {cause}")


def fan_out(
    parent: Any, children: Iterable[Any], *, then: Signature, on_failure: str = OnFailure.FAIL, **options: Any
) -> AsyncResult:
    """Enqueues `children`, any iterable of signatures, and `then`, which runs once when all of them have ended.

    `then` gets the list of their results, in the order of the children, as its first argument, unless it is immutable.
    A child may be a chain, a group or a chord; the result of a group is a list. `on_failure` says what a child that
    failed or was cancelled means: "fail" (the default) fails `then`, once all have ended, "ignore" puts None in its
    place, "continue" leaves its place out.

    With `parent=None` all of it is written in one transaction, the caller's if there is one; `options` are those of
    `then`, and the result is that of `then`. With `parent=self`, in the body of a bound task, the running job itself
    goes on as `then` under its own id: nothing after the call is run, and the job is *delayed*, with a progress made
    of its children's, until they have ended. To cancel the job that is held is to cancel the children.

    Raises ChildRefused for a child that is wrong, and what enqueueing `then` raises; then nothing was written. With a
    parent such an error fails the parent.
    """
    on_failure = OnFailure(on_failure).value
    if parent is not None:
        if getattr(parent.request, "run", None) is None:
            raise RuntimeError("fan_out(parent, …): expected the bound task itself, while it runs in a worker.")
        if options:
            raise TypeError(f"fan_out(parent, …): the job that runs has its options already: {', '.join(options)}.")
        parent.request.replacement = canvas.FanOut(children=children, then=then, on_failure=on_failure)
        raise Ignore(f"goes on as {then.task} when its children have ended")
    using = router.db_for_write(Job)
    refuse_unsafe(then.task, ledger=using)
    with transaction.atomic(using=using):
        flow = Flow.objects.create(on_failure=on_failure)
        result: AsyncResult = then.apply_async(
            (canvas.held_argument(),), awaited_flow_id=str(flow.pk), **_lineage(None), **options
        )
        insert(flow, children, _lineage(None))
    return result


def hold_for_chord(group_id: str, body: Signature) -> None:
    """A chord is being enqueued: its body is written, and held until the members of that group have ended."""
    flow_id = canvas.flow_id_of(group_id)
    # There is one already where its caller enqueues it again under the same ids.
    Flow.objects.bulk_create([Flow(id=flow_id)], ignore_conflicts=True)
    body.apply_async((canvas.held_argument(),), awaited_flow_id=str(flow_id))


def hold(run: settle.Run, plan: canvas.FanOut) -> bool:
    """Makes a flow of a running job: the job is held, and its children are written, in one transaction.

    False where the run does not own the job any more; then nothing was written. Called again after the connection broke
    in the middle of a generator, whose first children are gone, it gives the job back: the body makes it anew.
    """
    if plan.is_used_up:
        logger.warning("id=%s runs again: the children that its body made were lost with the connection.", run.job_id)
        return settle.give_back(run)
    # The policy is for children. A canvas that follows them is a member too, and the job ends as that does.
    flow = Flow(id=new_id(), on_failure=plan.on_failure if type(plan.then) is Signature else OnFailure.FAIL)
    with settle.atomic():
        job = run.row().select_for_update().first()
        if job is None:
            return False
        flow.save(force_insert=True)
        lineage = _lineage(job)
        if plan.then is None or type(plan.then) is not Signature:
            accumulate = current_app.tasks["celery.accumulate"]
            changes: dict[str, Any] = {
                "task": accumulate.name,
                "args": [canvas.held_argument(only=True)],
                "kwargs": {"index": 0},
                "follow_ups": replacing.joined(job.follow_ups, {}),
                **own_limits.taken_from({}, accumulate, (), {}),
            }
        else:
            args = tuple(plan.then.args) if plan.then.immutable else (canvas.held_argument(), *plan.then.args)
            changes = replacing.changes(job, plan.then, args, awaited_flow_id=str(flow.pk))
        transition(run.row(), Cause.HELD, awaited_flow_id=flow.pk, is_held=True, run_at=Now(), **changes)
        if plan.then is not None and type(plan.then) is not Signature:
            inner = Flow.objects.create(on_failure=plan.on_failure)
            _apply(plan.then, 0, flow, lineage, args=(canvas.held_argument(),), awaited_flow_id=str(inner.pk))
            flow = inner
        plan.is_begun = True
        insert(flow, plan.children, lineage)
    return True


def close_if_ended(flow_id: UUID) -> bool:
    """Lets the held jobs of a flow go, or fails them, if no member is alive; returns whether this call did it.

    Called by many at once, one of them does it; killed in the middle, nothing has happened. Where the results cannot be
    handed over, and never will be, the held jobs fail. Raises what stands in the way of that, or may be gone later.
    """
    was_closed, outer = _close_one(flow_id)
    _close_all(outer)
    return was_closed


def _close_one(flow_id: UUID) -> tuple[bool, set[UUID]]:
    """Whether this call closed a flow, and those of whose members it has failed some."""
    if Job.objects.filter(flow_id=flow_id, state__in=LIVE).exists():
        return False, set()
    try:
        outer = _close(flow_id)
    except Exception as error:  # whatever it is, it would come again at every look
        if may_pass(error):
            raise
        logger.exception("Flow %s has ended, but its results cannot be handed over.", flow_id)
        outer = _close(flow_id, refused=error)
    return outer is not None, outer or set()


def _close_all(flow_ids: set[UUID]) -> None:
    """Closes those of these flows that have ended, and those around them. They may stand in each other to any depth."""
    to_do = list(flow_ids)
    while to_do:
        to_do.extend(_close_one(to_do.pop())[1])


def refuse(flow_id: UUID, error: Exception) -> None:
    """Closes a flow whose members have ended, and fails the jobs that wait for their results, with this reason."""
    _close_all(_close(flow_id, refused=error) or set())


def _close(flow_id: UUID, refused: Exception | None = None) -> set[UUID] | None:
    """Closes a flow, or nothing and returns None; else those flows whose members it has failed. `refused`: what came of
    trying to hand the results over."""
    members = Job.objects.filter(flow_id=flow_id)
    with settle.atomic():
        flow = Flow.objects.select_for_update(skip_locked=True).filter(pk=flow_id, closed_at__isnull=True).first()
        # A member may have been run again until the lock was there.
        if flow is None or members.filter(state__in=LIVE).exists():
            return None
        Flow.objects.filter(pk=flow_id).update(closed_at=Now())
        waiting = list(held(flow).select_for_update())
        if not waiting:
            return set()
        exception: Any = None
        if refused is not None:
            cause = ChordError(f"{type(refused).__name__}: {refused}")
            error = f"The results of the jobs that it waited for could not be handed to it: {cause}"
        else:
            outcomes = list(members.order_by("flow_path", "pk").only(*_READ_OF_MEMBERS))
            missing = [member for member in outcomes if not _has_result(member)]
            if not missing or flow.on_failure != OnFailure.FAIL:
                for job in waiting:
                    release(job, list(_results(outcomes, flow.on_failure)))
                return set()
            first = missing[0]
            why = first.error or "it did not hand its slot on to the next step"
            cause = ChordError(f"Dependency {first.pk} raised {why}")
            many = f"{len(missing)} of the {len(outcomes)} jobs that it waited for did not complete"
            error = f"{many}. The first: {first}: {why}"
            exception = first.exception if first.state == State.FAILED else None
        for job in waiting:
            if exception and canvas.is_in_place_of_one(job.args):
                fail_held(job, missing[0].error, cause, exception=exception)
            else:
                # As in Celery, the tasks of a group that is a body fail as the header did.
                fail_held(job, error, cause, exception=exception if len(waiting) > 1 else None)
        return {job.flow_id for job in waiting if job.flow_id is not None}


def member_ended(flow_id: UUID | None) -> None:
    """A run has written the end of a member, which stands: closes its flow, if that was the last one."""
    if flow_id is None:
        return
    try:
        close_if_ended(flow_id)
    except DATABASE_AWAY as error:
        logger.warning("Could not look whether flow %s has ended (%s); the dispatcher will.", flow_id, error)
    except Exception:  # the member has ended, and its run must not fail for what becomes of the flow
        logger.exception("Could not close flow %s; the dispatcher tries again.", flow_id)


def reopen(job: Job) -> None:
    """An operator runs a job again, in the current transaction: where it is a member whose end has failed the jobs that
    its flow held, those are held once more."""
    to_do = [job]
    while to_do:
        member = to_do.pop()
        if member.flow_id is None:
            continue
        # Whoever closes the flow at this moment has not seen this: wait for what it does. From here on, nobody closes
        # it.
        Flow.objects.select_for_update().filter(pk=member.flow_id).first()
        held_failed = Job.objects.filter(awaited_flow_id=member.flow_id, is_held=True, state="failed")
        to_do += [waiting for waiting in held_failed.select_for_update() if _hold_again(waiting)]


def run_members_again(job: Job, *, fresh: dict[str, Any]) -> int:
    """An operator runs a job again that never got the results of its flow, in the current transaction: its members that
    did not complete run again, and it is held once more. `fresh`: the columns of a job before its first run.

    Returns how many members run again, those of flows inside included.
    """
    count, known, to_do, to_hold = 0, {job.pk}, [job], []
    while to_do:
        waiting = to_do.pop()
        to_hold.append(waiting)
        lost = Job.objects.filter(flow_id__in=[waiting.awaited_flow_id], state__in=["failed", "cancelled"])
        for member in lost.exclude(pk__in=known).select_for_update():
            known.add(member.pk)
            if member.is_held:
                to_do.append(member)
            elif transition(Job.objects.filter(pk=member.pk), Cause.RUN_AGAIN, **fresh):
                follow_ups.reopen(member)
                count += 1
    for waiting in reversed(to_hold):
        if _hold_again(waiting):
            reopen(waiting)
    return count


def _hold_again(job: Job) -> bool:
    """Holds a job that never got the results of its flow, which is open again."""
    Flow.objects.filter(pk__in=[job.awaited_flow_id]).update(closed_at=None)
    changes = {"finished_at": None, "error": "", "exception": None, "traceback": ""}
    if not transition(Job.objects.filter(pk=job.pk), Cause.REOPENED, **changes):
        return False
    follow_ups.reopen(job)
    return True


def _lineage(job: Job | None) -> dict[str, Any]:
    """Whose children the members are; without a job, enqueueing finds it out by itself."""
    if job is None:
        return {}
    return {"parent_id": str(job.pk), "root_id": str(job.root_id or job.pk)}


def insert(flow: Flow, children: Iterable[Any], lineage: dict[str, Any]) -> None:
    """Writes a flow's members. Those in a row that differ in their arguments alone are written together, a batch at a
    time: memory does not grow with their number. Raises ChildRefused."""
    app = current_app._get_current_object()
    writer = _Writer(app, flow, lineage)
    for index, child in enumerate(children):
        try:
            if not isinstance(child, dict):
                raise TypeError(f"{shown(child)}: expected a signature of a task.")
            writer.add(index, maybe_signature(child, app=app))
        except (TypeError, ValueError, LookupError) as error:
            raise ChildRefused(index, error) from error
    writer.write()


class _Writer:
    def __init__(self, app: Any, flow: Flow, lineage: dict[str, Any]) -> None:
        self._app, self._flow, self._lineage = app, flow, lineage
        self._options: dict[str, Any] = {}
        self._alike: bulk.Alike | None = None

    def add(self, index: int, child: Any) -> None:
        """One more member, which may be written later with those that follow."""
        own = dict(child.options or {})
        is_plain = type(child) is Signature and not own.keys() & {"task_id", "dedup_key"}
        if self._alike is not None and not (
            is_plain and (child.task, own) == (self._alike.task.name, self._options) and len(self._alike.rows) < _BATCH
        ):
            self.write()
        if not is_plain:
            _apply(child, index, self._flow, self._lineage)
            return
        if self._alike is None:
            self._options = own
            options = {**own, **self._lineage, **_membership(self._flow, 0)}
            self._alike = bulk.Alike(replacing.task_named(self._app, child.task), options)
        self._alike.add(tuple(child.args), dict(child.kwargs), flow_path=[index])

    def write(self) -> None:
        """Writes what was not written yet."""
        if self._alike is not None:
            self._alike.write()
            self._alike = None


def _apply(child: Any, index: int, flow: Flow, lineage: dict[str, Any], *, args: Any = (), **options: Any) -> None:
    """Enqueues a canvas, or a task with an id of its own, as one member."""
    if (child.options or {}).get("dedup_key") is not None:
        raise enqueue.NotSupported(f"{child.task}: a member of a flow may have no dedup_key.")
    canvas.as_member(child, current_app, _membership(flow, index)).apply_async(args, **lineage, **options)


def _membership(flow: Flow, index: int) -> dict[str, Any]:
    return {"chord": _BODY, "group_id": str(flow.pk), "group_index": index}


def held(flow: Flow) -> QuerySet[Job]:
    """The jobs that wait for a flow."""
    return Job.objects.filter(awaited_flow_id=flow.pk, is_held=True, state="delayed")


def _has_result(member: Job) -> bool:
    """A completed job that still holds its slot although its chain was to go on: the next step was not written."""
    return member.state == "completed" and not (member.follow_ups or {}).get("chain")


def _results(members: list[Job], on_failure: str) -> Iterator[Any]:
    for member in members:
        if _has_result(member):
            yield member.result
        elif on_failure == OnFailure.IGNORE:
            yield None


def release(job: Job, results: list[Any]) -> None:
    """Lets a held job run with the results of its flow, in the transaction that closes that."""
    job.args = canvas.with_results(job.args, results)
    due = dict(job.follow_ups.pop("due", {}))
    app = current_app._get_current_object()
    expires = due.pop("expires", None)
    run_at, state = enqueue.run_at_of(app, due)
    changes = {
        "is_held": False,
        "run_at": run_at,
        "args": job.args,
        "follow_ups": job.follow_ups,
        "progress_percent": None,
        "progress_message": "",
    }
    if expires is not None:
        changes["expires_at"] = enqueue.expires_at_of(app, expires)
    if state == State.DELAYED:
        # It has its results, and comes when it is due.
        Job.objects.filter(pk=job.pk, state="delayed").update(**changes)
    elif transition(Job.objects.filter(pk=job.pk), Cause.RELEASED, **changes):
        publish.after_commit(publish.Ring.of(job))


def fail_held(job: Job, error: str, cause: ChordError, *, exception: Any = None) -> None:
    """Fails a held job, in the transaction that closes its flow: with the exception of one that it waited for, where
    that is given, else with the cause."""
    backend: Any = current_app.backend
    stored = exception or backend.prepare_exception(cause)
    end(job, Cause.MEMBER_FAILED, error=error, exception=stored, raised=None if exception else cause)
