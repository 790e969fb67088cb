"""Rows for tests, made the short way."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db.models.functions import Now
from django.utils import timezone

from jobs import claims
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job, JobEvent, Worker
from jobs.settle import Run
from tests.sample_tasks import add


def make_worker(**fields: Any) -> Worker:
    """A living worker's row."""
    return Worker.objects.create(
        **{
            "id": uuid4(),
            "node": "celery@test",
            "host": "test",
            "pid": 1,
            "pool": "prefork",
            "concurrency": 1,
            "lease_expires_at": timezone.now() + timedelta(minutes=5),
            **fields,
        }
    )


def make_job(**fields: Any) -> Job:
    """A waiting job of a sample task."""
    values = {"task": add.name, "queue": "default", "state": "waiting", "max_attempts": 3, **fields}
    if values["state"] in ("completed", "failed", "cancelled"):
        values.setdefault("finished_at", Now())
    values.setdefault("lane", lane_of({name: values.get(name) for name in COLUMNS}))
    return Job.objects.create(**values)


def make_events(count: int = 1, **fields: Any) -> None:
    """Ends of runs that nobody has folded into the statistics yet, as the trigger writes them."""
    values = {"task": add.name, "queue": "default", "kind": "completed", **fields}
    JobEvent.objects.bulk_create(JobEvent(**values) for _ in range(count))


def claim_job(job: Job, worker: Worker, name: str = "claim") -> Run:
    """Claims a waiting job as a worker does, by a token that ends in this name; returns the run."""
    token = f"{worker.pk.hex}:{name}"
    claimed = claims.claim({job.pk: token}, worker_id=worker.pk)
    assert [claim.job_id for claim in claimed] == [job.pk]
    return Run(job.pk, token)


def state_of(job_id: UUID | str) -> str:
    """The job's state, read from the database."""
    return Job.objects.values_list("state", flat=True).get(pk=job_id)
