"""`python -m tests.soak.producer SEED`: enqueues jobs of every kind in transactions of its own, until it is killed."""

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

_PER_SECOND = 12
_MOST_LIVE = 400
_KINDS = ["whole"] * 6 + ["delayed", "chained", "retried", "fenced", "idempotent", "idempotent", "long", "suicidal"]


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
        case "long":
            tasks.long.delay(kind, key)
        case "suicidal":
            tasks.suicidal.delay(kind, key)
        case _:
            tasks.whole.delay(kind, key, chance.uniform(0, 0.1))


def main(seed: str) -> None:
    chance = random.Random(seed)
    while True:
        time.sleep(chance.expovariate(_PER_SECOND))
        kind = "undone" if chance.random() < 0.05 else chance.choice(_KINDS)
        try:
            if Job.objects.filter(state__in=["waiting", "delayed"]).count() < _MOST_LIVE:
                with transaction.atomic():
                    enqueue(kind, uuid4().hex, chance)
        except ChangedItsMind:
            pass
        except DATABASE_AWAY:
            # Committed or not: the wish and the job share their fate.
            connections.close_all()


if __name__ == "__main__":
    main(sys.argv[1])
