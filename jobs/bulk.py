"""Many jobs of one task at once: a thousand rows per statement, and hints for as many as the window takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from celery import current_app
from django.conf import settings
from django.db import router, transaction
from django.db.models.functions import Now

from jobs import claims, enqueue, own_limits, publish
from jobs.callers import refuse_unsafe
from jobs.dedup import Dedup
from jobs.ids import new_id
from jobs.models import DedupWindow, Job
from jobs.redaction import redacted_repr
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
    dedup_key: Callable[[Mapping[str, Any]], str] | None = None,
    **options: Any,
) -> Enqueued:
    """Enqueues a task once for each of `calls`, which are its keyword arguments, from any iterable, also without end in
    sight: never more than a thousand are held in memory.

    `options` are those of `apply_async`, the same for all; `dedup_key` makes the key of each call from its arguments. A
    call whose key is taken, by a live job, for a time, or by an earlier call, leaves nothing. In the caller's
    transaction all is part of that. Outside of one, each thousand is committed by itself, so that others' first jobs
    run while the last ones are being written; with `atomic=True` there is one transaction around all.

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
                batch, hint_at_most=settings.JOBS_WINDOW - count, using=using
            )
            count += written
            existing_count += len(batch) - written
    return Enqueued(count=count, existing_count=existing_count)


class _Batch:
    def __init__(
        self,
        task: Any,
        options: Mapping[str, Any],
        dedup_key: Callable[[Mapping[str, Any]], str] | None,
        before: Enqueued,
    ) -> None:
        self._task, self._options, self._dedup_key, self._before = task, options, dedup_key, before

    def write(self, calls: list[tuple[int, Mapping[str, Any]]], *, hint_at_most: int, using: str) -> int:
        rows: list[claims.NewRow] = []
        arguments: dict[UUID, Mapping[str, Any]] = {}
        with self._refusing(calls[0][0]):
            like = self._like(calls[0][1])
        for number, kwargs in calls:
            with self._refusing(number):
                rows.append(self._row(kwargs))
            if len(arguments) < hint_at_most:
                arguments[rows[-1].job_id] = kwargs
        written = claims.insert_many(like, self._free(rows, using))
        if like.state == State.WAITING:
            hint = publish.Hint.of(like)
            hints = [
                replace(hint, job_id=job_id, kwargs_text=redacted_repr(dict(kwargs)), hint_id=publish.new_hint_id())
                for job_id, kwargs in arguments.items()
                if job_id in written
            ]
            transaction.on_commit(partial(publish.many_soon, hints), using=using, robust=True)
        return len(written)

    def _like(self, kwargs: Mapping[str, Any]) -> Job:
        """A job that all of the batch are like, but for their arguments and keys; its times are moments."""
        options = dict(self._options)
        app = current_app._get_current_object()
        job = enqueue.job_of(app, self._task, (), dict(kwargs), options.copy())
        now = claims.now()
        if hasattr(job.run_at, "resolve_expression"):
            job.run_at = now + timedelta(seconds=options.get("countdown") or 0)
        if hasattr(job.expires_at, "resolve_expression"):
            job.expires_at = now + timedelta(seconds=options["expires"])
        return job

    def _row(self, kwargs: Mapping[str, Any]) -> claims.NewRow:
        self._task.__header__(**kwargs)
        payload = enqueue.checked_json(self._task.name, dict(kwargs))
        key = self._dedup_key(kwargs) if self._dedup_key is not None else None
        # What the options say of limits is the same for all; the keys that a task declares may name arguments.
        own = own_limits.taken_from(dict(self._options), self._task, (), kwargs)
        limits = own["rate_key"], own["concurrency_key"], own["lane"]
        return claims.NewRow(new_id(), payload, Dedup.taken_from({"dedup_key": key}).key, *limits)

    @contextmanager
    def _refusing(self, number: int) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, LookupError) as error:
            raise CallRefused(self._task.name, number, self._before, error) from error

    def _free(self, rows: list[claims.NewRow], using: str) -> list[claims.NewRow]:
        """In the order of their keys, so that two callers with the same keys do not wait for each other for ever; but
        for those whose key a throttled job has."""
        if self._dedup_key is None:
            return rows
        by_key = {row.dedup_key: row for row in reversed(rows)}
        windows = DedupWindow.objects.using(using).filter(key__in=by_key, until__gt=Now())
        taken = set(windows.values_list("key", flat=True))
        return [row for key, row in sorted(by_key.items()) if key not in taken]
