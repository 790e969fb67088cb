"""Many jobs of one task at once: a thousand rows per statement, and one ring after each commit."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import router, transaction
from django.db.models.functions import Now

from jobs import claims, enqueue, own_limits, publish
from jobs.callers import refuse_unsafe
from jobs.dedup import Dedup
from jobs.ids import new_id
from jobs.models import DedupWindow, Job
from jobs.states import State

_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """What became of many calls: jobs that were written, and calls for whose dedup key there was a job already."""

    count: int
    existing_count: int


class CallRefused(ValueError):
    """One of many calls is wrong; the cause says how. Calls before it may have been enqueued."""

    def __init__(self, task: str, number: int, enqueued: Enqueued, cause: Exception) -> None:
        self.enqueued = enqueued
        super().__init__(
            f"{task}: call {number}, counted from 0, was refused, and nothing after it was enqueued. Before it, "
            f"{enqueued.count} jobs were. {type(cause).__name__}: {cause}"
        )


def enqueue_many(
    task: Any,
    calls: Iterable[Mapping[str, Any]],
    *,
    atomic: bool = False,
    dedup_key: Callable[[Mapping[str, Any]], str | None] | None = None,
    **options: Any,
) -> Enqueued:
    """Enqueues a task once for each of `calls`, which are its keyword arguments, from any iterable, also without end in
    sight: never more than a thousand are held in memory.

    `options` are those of `apply_async`, the same for all. `dedup_key` makes the key of each call from its arguments,
    or None for none; a call whose key is taken, by a live job, for a time, or by an earlier call, leaves nothing. In
    the caller's transaction all is part of that. Outside of one, each thousand is committed by itself, so that others'
    first jobs run while the last ones are being written; with `atomic=True` there is one transaction around all.

    Raises CallRefused for a call that is wrong, and whatever enqueueing raises where the options are. Called again
    after a crash in the middle, it writes everything again, but for what dedup keys hold.
    """
    using = router.db_for_write(Job)
    refuse_unsafe(task.name, ledger=using)
    unfit = [name for name in ("task_id", "dedup_seconds", "dedup_latest") if options.get(name) is not None]
    if unfit:
        raise enqueue.NotSupported(f"{task.name}: {', '.join(unfit)}= cannot be given for many calls at once.")
    count = existing_count = 0
    numbered = enumerate(calls)
    with transaction.atomic(using=using) if atomic else nullcontext():
        while batch := list(islice(numbered, _BATCH)):
            written = _Batch(task, options, dedup_key, Enqueued(count=count, existing_count=existing_count)).write(
                batch, using=using
            )
            count += written
            existing_count += len(batch) - written
    return Enqueued(count=count, existing_count=existing_count)


class _Batch:
    def __init__(
        self,
        task: Any,
        options: Mapping[str, Any],
        dedup_key: Callable[[Mapping[str, Any]], str | None] | None,
        before: Enqueued,
    ) -> None:
        self._task, self._options, self._dedup_key, self._before = task, options, dedup_key, before

    def write(self, calls: list[tuple[int, Mapping[str, Any]]], *, using: str) -> int:
        many = Alike(self._task, self._options)
        for number, kwargs in calls:
            try:
                many.add((), dict(kwargs), dedup_key=self._dedup_key(kwargs) if self._dedup_key is not None else None)
            except (TypeError, ValueError, LookupError) as error:
                raise CallRefused(self._task.name, number, self._before, error) from error
        if self._dedup_key is not None:
            many.rows = self._free(many.rows, using)
        return len(many.write())

    def _free(self, rows: list[claims.NewRow], using: str) -> list[claims.NewRow]:
        """In the order of their keys, so that two callers with the same keys do not wait for each other for ever; but
        for those whose key a throttled job has. Those without a key come first."""
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
        else:
            self.task.__header__(*args, **kwargs)
        args_json, kwargs_json = (enqueue.checked_json(self.task.name, part) for part in (list(args), kwargs))
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
        if self._like is None:
            return set()
        written = claims.insert_many(self._like, self.rows)
        if written and self._like.state == State.WAITING:
            publish.after_commit(publish.Ring.of(self._like))
        return written

    def _model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        """A job that all are like, but for what they have for themselves; its times are moments."""
        app = current_app._get_current_object()
        job = enqueue.job_of(app, self.task, args, kwargs, dict(self._options))
        options, now = enqueue.over_declared(self.task, self._options), claims.now()
        if hasattr(job.run_at, "resolve_expression"):
            job.run_at = now + timedelta(seconds=options.get("countdown", 0))
        if hasattr(job.expires_at, "resolve_expression"):
            job.expires_at = now + timedelta(seconds=options["expires"])
        return job
