"""`python -m tests.soak.producer SEED`: enqueues jobs of every kind in transactions of its own, until it is killed."""

import os
import random
import sys
import time
from uuid import uuid4

import django

django.setup()

from celery import chain  # noqa: E402
from django.db import connections, transaction  # noqa: E402

from jobs.models import Job  # noqa: E402
from jobs.patience import DATABASE_AWAY  # noqa: E402
from tests.soak import tasks  # noqa: E402
from tests.soak.odd_tasks import ODD  # noqa: E402
from tests.soak.poison import SHARE, Accepted, Poisoner, is_time  # noqa: E402

_PER_SECOND = 12
_MOST_LIVE = 400
# Of jobs with limits, which wait for as long as Redis is away.
_MOST_LIMITED = 200
# Where a backlog is wanted, so many are enqueued in one transaction while it is shorter than that.
_BURST = 100
_QUEUES = ("default", "webhooks", "images")
_KINDS = ["whole"] * 6 + ["delayed", "chained", "retried", "fenced", "idempotent", "idempotent", "long", "suicidal"]
_KINDS += ["limited"] * 2


class ChangedItsMind(Exception):
    """The transaction is rolled back: there must be no job of it."""


def enqueue(kind: str, key: str, chance: random.Random) -> None:
    if kind != "undone":
        tasks.wish(kind, key)
    match kind:
        case "undone":
            tasks.whole.delay(kind, key)
            raise ChangedItsMind
        case "delayed":
            tasks.whole.apply_async((kind, key), countdown=chance.uniform(0, 5))
        case "chained":
            tasks.wish("second", key)
            chain(tasks.whole.s(kind, key), tasks.next_step.s("second", key)).apply_async()
        case "retried":
            tasks.retried.delay(kind, key)
        case "fenced":
            tasks.fenced_block.delay(kind, key)
        case "idempotent":
            tasks.idempotent.delay(kind, key)
        case "limited":
            tasks.limited.delay(kind, key)
        case "long":
            tasks.long.delay(kind, key)
        case "suicidal":
            tasks.suicidal.delay(kind, key)
        case _:
            tasks.whole.delay(kind, key, chance.uniform(0, 0.1))


def fill_up(chance: random.Random) -> None:
    """A burst of short jobs, of any priority, in three queues."""
    for _ in range(_BURST):
        key = uuid4().hex
        tasks.wish("whole", key)
        queue, priority = chance.choice(_QUEUES), chance.randrange(10)
        tasks.whole.apply_async(("whole", key, chance.uniform(0, 0.01)), queue=queue, priority=priority)


def main(seed: str) -> None:
    chance = random.Random(seed)
    backlog = int(os.environ.get("SOAK_BACKLOG", "0"))
    poisoner = Poisoner(chance)
    while True:
        time.sleep(chance.expovariate(_PER_SECOND))
        kind = "undone" if chance.random() < 0.05 else chance.choice(_KINDS)
        try:
            live = Job.objects.filter(state__in=["waiting", "delayed"]).exclude(task__in=ODD)
            live_count = live.filter(concurrency_key=None).count()
            with transaction.atomic():
                if live_count < backlog:
                    fill_up(chance)
                if kind == "limited":
                    if live.exclude(concurrency_key=None).count() < _MOST_LIMITED:
                        enqueue(kind, uuid4().hex, chance)
                elif live_count < _MOST_LIVE or (backlog and chance.random() < 0.1):
                    enqueue(kind, uuid4().hex, chance)
                if is_time(time.time()) and chance.random() < SHARE:
                    poisoner.act()
        except ChangedItsMind:
            pass
        except Accepted as error:
            tasks.complain(str(error))
        except DATABASE_AWAY:
            # Committed or not: the wish and the job share their fate.
            connections.close_all()


if __name__ == "__main__":
    main(sys.argv[1])
