"""Claims of jobs with limits: each starts only if its queue and its own limits let it, over all workers together (G11).

A function in PostgreSQL claims them, one after the other, in one transaction: a worker that is frozen or dies in the
middle of it keeps nobody waiting, and the plans of its many short statements are made once per connection.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DatabaseError

from jobs.limits import COLUMNS, Limits, concurrency_key, in_force, is_granted, queue_key
from jobs.models import QueueControl
from jobs.patience import DATABASE_AWAY
from jobs.statements import CLAIMED, rows_of

logger = logging.getLogger(__name__)

# Locks: nothing. Index: primary keys; see the head of `jobs.claims` for the CASE.
# Two at once: they read.
WAITING = f"""
SELECT job.id, job.queue, job.lane, statement_timestamp(),
    control.name, control.rate_limit, control.concurrency_limit, control.quiet_hours,
    {", ".join(f"job.{column}" for column in COLUMNS)}
FROM jobs_job AS job LEFT JOIN jobs_queuecontrol AS control ON control.name = job.queue
WHERE job.id = ANY (%(job_ids)s::uuid[]) AND CASE job.state WHEN 'waiting' THEN TRUE ELSE FALSE END
"""  # noqa: S608

# Locks: the rows of the limits, in the order of their keys, then those of the jobs, until the end of the statement.
# Index: primary keys, job_active_of_key and job_active. Two at once: see the function, in the migration 0015.
CLAIM_LIMITED = f"""
SELECT {CLAIMED} FROM jobs_claim_limited(%(wanted)s::jsonb, %(locks)s::text[], %(worker_id)s, %(tasks)s::text[]) AS job
"""  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A waiting job that has limits, and the moment at which these held for it."""

    job_id: UUID
    token: str
    limits: Limits
    now: datetime


def sorted_out(wanted: Mapping[UUID, str]) -> tuple[list[Candidate], list[UUID]]:
    """Of these jobs, which maps their ids to claim tokens, those that wait: with limits, and the ids of those without.

    Jobs in their quiet hours are left out.
    """
    limited, free = [], []
    for job_id, queue, lane, now, name, rate_limit, concurrency_limit, quiet_hours, *own in rows_of(
        WAITING, {"job_ids": list(wanted)}
    ):
        control = name and QueueControl(
            name=name, rate_limit=rate_limit, concurrency_limit=concurrency_limit, quiet_hours=quiet_hours
        )
        if lane or is_granted(queue, control):
            values = {**dict(zip(COLUMNS, own, strict=True)), "lane": lane}
            limits = Limits.of(in_force(queue, control), values)
            if limits.quiet_until(now) is None:
                limited.append(Candidate(job_id=job_id, token=wanted[job_id], limits=limits, now=now))
        else:
            free.append(job_id)
    return limited, free


def claim_limited(candidates: Sequence[Candidate], *, worker_id: UUID, tasks: Collection[str] | None) -> list[Any]:
    """Claims those that their limits let start, in this order; returns the rows of those it got.

    One that cannot be claimed keeps no other from it; its error is raised where it is alone.
    """
    common: dict[str, Any] = {"worker_id": worker_id, "tasks": tasks}
    if len(candidates) == 1:
        return rows_of(CLAIM_LIMITED, parameters_of(candidates, **common))
    try:
        return rows_of(CLAIM_LIMITED, parameters_of(candidates, **common))
    except DATABASE_AWAY:
        raise
    except DatabaseError:
        logger.exception("Of %d jobs with limits, one cannot be claimed: each is claimed by itself.", len(candidates))
    rows = []
    for one in candidates:
        try:
            rows += rows_of(CLAIM_LIMITED, parameters_of([one], **common))
        except DATABASE_AWAY:
            raise
        except DatabaseError:
            logger.exception("id=%s cannot be claimed.", one.job_id)
    return rows


def parameters_of(candidates: Sequence[Candidate], *, worker_id: UUID, tasks: Collection[str] | None) -> dict[str, Any]:
    """What CLAIM_LIMITED is given."""
    return {
        "wanted": json.dumps([_as_json(one) for one in candidates]),
        "locks": sorted({key for one in candidates for key in one.limits.locks}),
        "worker_id": worker_id,
        "tasks": None if tasks is None else list(tasks),
    }


def _as_json(one: Candidate) -> dict[str, Any]:
    limits, loud_until = one.limits, one.limits.loud_until(one.now)
    return {
        "job_id": str(one.job_id),
        "token": one.token,
        "queue": limits.queue,
        "lane": limits.lane,
        "locks": limits.locks,
        "loud_until": loud_until and loud_until.isoformat(),
        "rates": [
            {"key": key, "count": rate and rate.count, "period": rate and f"{rate.period.total_seconds():.0f} seconds"}
            for key, rate in limits.rates.items()
        ],
        "concurrency_key": limits.concurrency_key,
        "concurrency_lock": concurrency_key(limits.concurrency_key or ""),
        "concurrency": limits.concurrency,
        "queue_lock": queue_key(limits.queue),
        "queue_concurrency": limits.queue_concurrency,
    }
