"""Odd calls and odd rows. A call is refused, and leaves its caller's transaction as it was, or its jobs come to an end.
A row that PostgreSQL lets nobody change is set aside and failed. None of them may keep an ordinary job waiting.
"""

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

from celery import chain, chord, group
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from jobs.bulk import enqueue_many
from jobs.flows import fan_out
from jobs.models import Job
from tests.hostile_tasks import LEFT, LOST, RAISED
from tests.soak import odd_tasks

# Odd calls are made in every second one of these spans, so that ordinary jobs of the others can be compared.
SPAN_SECONDS = 15
# How many of the jobs of such a span are odd.
SHARE = 0.2
# Each needs five looks, and a duty fails no more than ten in a minute.
_STUBBORN_EVERY_SECONDS = 20.0
_TEXTS = ("", "\u202eabc", "a'b\"c\\", "{}%s%(x)s", "\U0001f600" * 500, "<script>", "\ufeff", "line\nline\r\n\t")

STUBBORN = """
CREATE OR REPLACE FUNCTION soak_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> 'failed' THEN RAISE EXCEPTION 'this row is stubborn'; END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER soak_refuse BEFORE UPDATE ON jobs_job FOR EACH ROW
WHEN (OLD.task = 'tests.soak.odd_tasks.stubborn') EXECUTE FUNCTION soak_refuse();
"""


class Accepted(AssertionError):
    """What was to be refused was not, or what was refused has broken the transaction."""


def install() -> None:
    """From now on PostgreSQL refuses to change jobs of the task `stubborn`, but for their failure."""
    with connection.cursor() as cursor:
        cursor.execute(STUBBORN)


def is_time(seconds: float) -> bool:
    """Whether odd calls are made at this moment."""
    return int(seconds) // SPAN_SECONDS % 2 == 1


def nested(depth: int) -> Any:
    """Lists inside of each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _expiring_chain() -> None:
    steps = chain(odd_tasks.odd.s("return", 1), odd_tasks.odd.s("return").set(task_id=str(uuid4())))
    steps.apply_async(expires=0.05, countdown=0.1)


def _chain_with_a_named_step() -> None:
    chain(odd_tasks.odd.s("return", 1), odd_tasks.odd.s("return").set(task_id="invoice-7")).apply_async(expires=0.05)


def _follow_up_that_is_none() -> None:
    what = random.choice([{"chain": 5}, {"link": [{"task": 1}]}, {"link": "x"}, {"link_error": [[]]}, {"chain": [{}]}])
    Job.objects.create(task=odd_tasks.odd.name, queue="default", state="waiting", args=["return", 1], follow_ups=what)


def _successor_that_is_none() -> None:
    Job.objects.create(
        task=odd_tasks.odd.name, queue="default", state="waiting", args=["return", 1], successor={"x": 1}
    )


def _limits_that_are_none() -> None:
    Job.objects.create(
        task=odd_tasks.odd.name,
        queue="default",
        state="waiting",
        args=["return", 1],
        rate_key="odd",
        rate_limit="many",
        quiet_hours="at night",
        lane="odd",
    )


def _arguments_that_are_none() -> None:
    Job.objects.create(task=odd_tasks.odd.name, queue="default", state="waiting", args={"no": "list"}, kwargs=[1])


def _hostile_body() -> None:
    task = random.choice([odd_tasks.hostile, odd_tasks.hostile_atomically])
    # A limit that is caught waits for five seconds, and would only keep a slot.
    how, ways = random.choice([("raise", RAISED), ("leave", LEFT), ("lose", LOST)])
    task.delay(how, random.choice([way for way in ways if way != "catches its limit"]))


ACCEPTED: list[Callable[[], object]] = [
    lambda: odd_tasks.odd.delay("return", nested(95)),
    lambda: odd_tasks.odd.delay("raise", random.choice(_TEXTS)),
    lambda: odd_tasks.odd.delay("return large", 3_000_000),
    lambda: odd_tasks.odd.delay("raise large", 3_000_000),
    lambda: odd_tasks.odd.delay("raise NUL"),
    lambda: odd_tasks.odd.apply_async(("return", 1), rate_key="\u202e" * 100, rate_limit="10000/h"),
    lambda: odd_tasks.odd.apply_async(("return", nested(90)), concurrency_key="'; --", concurrency_limit=2),
    lambda: odd_tasks.odd.apply_async(("return", 1), correlation_id="x" * 64, priority=9, max_attempts=1_000_000),
    lambda: odd_tasks.odd.apply_async(("return", 1), expires=-1),
    lambda: odd_tasks.odd.apply_async(("retry far away", 1)),
    lambda: chord(
        group(odd_tasks.odd.s("raise", "x"), odd_tasks.odd.s("return", 2)), odd_tasks.odd.s("return")
    ).apply_async(),
    lambda: fan_out(None, [], then=odd_tasks.odd.s("return")),
    _expiring_chain,
    _follow_up_that_is_none,
    _successor_that_is_none,
    _limits_that_are_none,
    _arguments_that_are_none,
    *[_hostile_body] * 6,
]

REFUSED: list[Callable[[], object]] = [
    lambda: odd_tasks.odd.delay("return", nested(600)),
    lambda: odd_tasks.odd.delay("return", float("nan")),
    lambda: odd_tasks.odd.delay("return", "\0"),
    lambda: odd_tasks.odd.delay("return", "\ud800"),
    lambda: odd_tasks.odd.delay("return", "x" * 300_000),
    lambda: odd_tasks.odd.apply_async(("return", 1), correlation_id="x" * 65),
    lambda: odd_tasks.odd.apply_async(("return", 1), countdown=10**12),
    lambda: odd_tasks.odd.apply_async(("return", 1), max_attempts=10**12),
    lambda: odd_tasks.odd.apply_async(("return", 1), rate_limit="many"),
    lambda: odd_tasks.odd.apply_async(("return", 1), owner_id=10**9),
    _chain_with_a_named_step,
    lambda: enqueue_many(odd_tasks.odd, [{"args": ("return", 1)}, {"args": ("return", nested(200))}]),
    lambda: fan_out(
        None, [odd_tasks.odd.s("return", 1), odd_tasks.odd.s("return", nested(200))], then=odd_tasks.odd.s()
    ),
]


class Poisoner:
    """Makes odd calls, one at a time, each in a transaction with an ordinary one."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._stubborn_at = 0.0

    def act(self) -> None:
        """An odd call or row, or one that must be refused. Raises Accepted."""
        if time.monotonic() >= self._stubborn_at:
            self._stubborn_at = time.monotonic() + _STUBBORN_EVERY_SECONDS
            self._make_a_stubborn_one()
        elif self._chance.random() < 0.3:
            refuse(self._chance.choice(REFUSED))
        else:
            self._chance.choice(ACCEPTED)()

    def _make_a_stubborn_one(self) -> None:
        expires_at = timezone.now() + timedelta(seconds=1) if self._chance.random() < 0.3 else None
        Job.objects.create(
            task=odd_tasks.stubborn.name, queue="default", state="delayed", run_at=Now(), expires_at=expires_at
        )


def refuse(call: Callable[[], object]) -> None:
    """Makes a call that must be refused, in the transaction that its caller has begun. Raises Accepted."""
    mine = Job.objects.filter(task=odd_tasks.odd.name, created_at=Now())
    before = mine.count()
    try:
        call()
    except (TypeError, ValueError):
        pass
    else:
        raise Accepted("A call that cannot be kept was accepted.")
    if mine.count() != before:
        raise Accepted("A call was refused, and left something behind.")
