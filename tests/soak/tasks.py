"""Jobs whose effects can be counted: each is a row of its own, so that nothing but the ledger keeps it single."""

import os
import random
import signal
import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

from celery import shared_task
from django.contrib.auth.models import Group
from django.db import DatabaseError, InterfaceError

from jobs import fenced
from jobs.models import Job
from jobs.queues import QUEUES

# Every job must complete, however often its workers are killed.
for _name in ("default", "webhooks", "images"):
    QUEUES[_name] = replace(QUEUES[_name], max_stalls=20)

# While PostgreSQL is away, bodies fail too; that is their own error, and they are to be tried again.
_OPTIONS: dict[str, Any] = {
    "queue": "default",
    "autoretry_for": (DatabaseError, InterfaceError),
    "retry_backoff": 1,
    "retry_backoff_max": 2,
    "max_retries": None,
}


def wish(kind: str, key: str) -> None:
    """Notes that the effect is wanted, in the transaction that enqueues its job."""
    Group.objects.create(name=f"wish {kind} {key}")


def complain(words: str) -> None:
    """Notes what must not have happened, for the account."""
    Group.objects.create(name=f"complaint {uuid4().hex[:8]} {words}")


def _effect(kind: str, key: str) -> None:
    Group.objects.create(name=f"effect {kind} {key} {uuid4()}")


@shared_task(**_OPTIONS, atomic=True)
def whole(kind: str, key: str, seconds: float = 0) -> str:
    _effect(kind, key)
    time.sleep(seconds)
    return key


@shared_task(**_OPTIONS, atomic=True, concurrency_limit=3)
def limited(kind: str, key: str) -> str:
    """Starts when it is granted, so not while Redis is away."""
    _effect(kind, key)
    return key


@shared_task(**_OPTIONS, atomic=True)
def next_step(_: Any, kind: str, key: str) -> str:
    _effect(kind, key)
    return key


@shared_task(**_OPTIONS, bind=True, atomic=True)
def long(self: Any, kind: str, key: str) -> str:
    _effect(kind, key)
    for step in range(20):
        time.sleep(random.uniform(0.05, 0.2))
        self.progress(step, 20, "on it")
    return key


@shared_task(**_OPTIONS, bind=True, atomic=True)
def retried(self: Any, kind: str, key: str) -> str:
    _effect(kind, key)
    if self.request.retries < 2:
        raise self.retry(countdown=random.uniform(0, 2))
    return key


@shared_task(**_OPTIONS, bind=True, atomic=True)
def suicidal(self: Any, kind: str, key: str) -> str:
    """Kills its process in its first run, or all of the worker where that is one process."""
    _effect(kind, key)
    if Job.objects.get(pk=self.request.id).stalled_count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


@shared_task(**_OPTIONS)
def fenced_block(kind: str, key: str) -> str:
    """Its block is whole, but a run that dies after it leaves it to another run to do it again."""
    with fenced():
        _effect(kind, key)
    time.sleep(random.uniform(0, 0.1))
    return key


@shared_task(**_OPTIONS)
def idempotent(kind: str, key: str) -> str:
    """An ordinary task, written as ordinary tasks are to be written."""
    Group.objects.get_or_create(name=f"effect {kind} {key} once")
    return key


@shared_task(**_OPTIONS)
def tick() -> None:
    """What beat enqueues."""
