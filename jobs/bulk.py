"""Many jobs of one task at once, all or none: a thousand rows per statement, and one ring for each thousand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import connections, router, transaction
from django.db.models.functions import Now

from jobs import claims, enqueue, own_limits, publish
from jobs import options as call_options
from jobs.callers import refuse_unsafe
from jobs.dedup import Dedup
from jobs.ids import new_id
from jobs.models import DedupWindow, Job
from jobs.payloads import as_json
from jobs.states import State

_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """What became of many calls: jobs that were written, and calls for whose dedup key there was a job already."""

    count: int
    existing_count: int


class CallRefused(ValueError):
    """One of many calls is wrong; the cause says how. None of them was enqueued."""

    def __init__(self, task: str, number: int, cause: Exception) -> None:
        self.number = number
        super().__init__(
            f"{task}: call {number}, counted from 0, was refused, so nothing was enqueued. "
            f"{type(cause).__name__}: {cause}"
        )


def enqueue_many(
    task: Any,
    calls: Iterable[Mapping[str, Any]],
    *,
    dedup_key: Callable[[Mapping[str, Any]], str | None] | None = None,
    **options: Any,
) -> Enqueued:
    """Enqueues a task once for each of `calls`, which are its keyword arguments, from any iterable, also without end in
    sight: never more than a thousand are held in memory.

    `options` are those of `apply_async`, the same for all. `dedup_key` makes the key of each call from its arguments,
    or None for none; a call whose key is taken, by a live job, for a time, or by an earlier call, leaves nothing.

    All is one transaction, or a savepoint of the caller's. Raises CallRefused for a call that is wrong, and whatever
    `calls` and `dedup_key` raise; then nothing was written, and the caller's transaction is as it was.
    """
    using = router.db_for_write(Job)
    refuse_unsafe(task.name, ledger=using)
    unfit = [name for name in ("task_id", "dedup_seconds", "dedup_latest") if options.get(name) is not None]
    if dedup_key is not None and not callable(dedup_key):
        raise TypeError(f"{task.name}: dedup_key={dedup_key!r}: expected what makes the key of each call.")
    if unfit:
        raise enqueue.NotSupported(f"{task.name}: {', '.join(unfit)}= cannot be given for many calls at once.")
    # Also where there is no call at all.
    call_options.check(task.name, options)
    count = existing_count = 0
    numbered = enumerate(calls)
    with transaction.atomic(using=using):
        if dedup_key is not None:
            _let_others_end(task.name, using)
        while batch := list(islice(numbered, _BATCH)):
            many = Alike(task, options)
            for number, kwargs in batch:
                _add(many, number, kwargs, dedup_key)
            if dedup_key is not None:
                many.rows = _free(many.rows, using)
            written = len(many.write())
            count += written
            existing_count += len(batch) - written
    return Enqueued(count=count, existing_count=existing_count)


def _add(
    many: "Alike",
    number: int,
    kwargs: Mapping[str, Any],
    dedup_key: Callable[[Mapping[str, Any]], str | None] | None,
) -> None:
    key = dedup_key(kwargs) if dedup_key is not None else None
    try:
        many.add((), dict(kwargs), dedup_key=key)
    except (TypeError, ValueError, LookupError) as error:
        raise CallRefused(many.task.name, number, error) from error


# Locks: a number that stands for the task, until the transaction ends. Index: none.
# Two at once: the second waits for the end of the first. Each waits for the other's keys too, and two that have the
# same keys in other batches would wait for each other for ever.
_LET_OTHERS_END = "SELECT pg_advisory_xact_lock(hashtext('jobs.bulk'), hashtext(%s))"


def _let_others_end(task: str, using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(_LET_OTHERS_END, [task])


def _free(rows: list[claims.NewRow], using: str) -> list[claims.NewRow]:
    """In the order of their keys, so that two callers with the same keys do not wait for each other for ever; but for
    those whose key a throttled job has. Those without a key come first."""
    by_key = {row.dedup_key: row for row in reversed(rows) if row.dedup_key is not None}
    windows = DedupWindow.objects.using(using).filter(key__in=by_key, until__gt=Now())
    taken = set(windows.values_list("key", flat=True))
    without = [row for row in rows if row.dedup_key is None]
    return without + [row for key, row in sorted(by_key.items()) if key not in taken]


class Alike:
    """Jobs of one task, with the same options, that are to be written together. Each is checked when it is added."""

    def __init__(self, task: Any, options: Mapping[str, Any]) -> None:
        self.rows: list[claims.NewRow] = []
        self.task, self._options = task, dict(options)
        self._like: Job | None = None
        self._common = ""

    def add(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        dedup_key: str | None = None,
        flow_path: list[int] | None = None,
    ) -> None:
        """One more of them. Raises what enqueueing it would raise."""
        if self._like is None:
            self._like = self._model(args, kwargs)
            self._common = as_json([self._like.headers, self._like.follow_ups], wrapped=2)
        else:
            self.task.__header__(*args, **kwargs)
        args_json, kwargs_json = (
            enqueue.checked_json(self.task.name, part, wrapped=1) for part in (list(args), kwargs)
        )
        enqueue.check_size(self.task.name, args_json, kwargs_json, self._common)
        key = Dedup.taken_from({"dedup_key": dedup_key}).key
        path = None if flow_path is None else f"{{{','.join(map(str, flow_path))}}}"
        # What the options say of limits is the same for all; the keys that a task declares may name arguments.
        own = own_limits.taken_from(dict(self._options), self.task, args, kwargs)
        limits = own["rate_key"], own["concurrency_key"], own["lane"]
        row = claims.NewRow(new_id(), args_json, kwargs_json, key, path, *limits)
        self.rows.append(row)

    def write(self) -> set[UUID]:
        """Inserts all of them, and rings once after the commit; returns the ids of those that were not there already
        under their dedup key."""
        if self._like is None or not self.rows:
            return set()
        written = claims.insert_many(self._like, self.rows)
        if written and self._like.state == State.WAITING:
            # It names one of them: where the transaction takes long, they all become waiting late.
            self._like.pk = next(row.job_id for row in self.rows if row.job_id in written)
            publish.after_commit(publish.Ring.of(self._like, is_of_many=True))
        return written

    def _model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        """A job that all are like, but for what they have for themselves; its times are moments."""
        app = current_app._get_current_object()
        job = enqueue.job_of(app, self.task, args, kwargs, dict(self._options))
        options, now = enqueue.over_declared(self.task, self._options), claims.now()
        if hasattr(job.run_at, "resolve_expression"):
            job.run_at = now + timedelta(seconds=max(0, options.get("countdown", 0)))
        if hasattr(job.expires_at, "resolve_expression"):
            job.expires_at = now + timedelta(seconds=options["expires"])
        return job
