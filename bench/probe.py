"""Times single steps of the ledger as its workers and its web take them: `python -m bench.probe ROUNDS`.

Prints, as JSON, the milliseconds of each: enqueueing one job, claiming one and five, completing one, and `/health`.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import django

django.setup()

from django.db.models.functions import Now  # noqa: E402
from django.test import Client  # noqa: E402

from bench.tasks import noop  # noqa: E402
from config.celery import app  # noqa: E402
from jobs import claims  # noqa: E402
from jobs.claims import Claim  # noqa: E402
from jobs.models import Worker  # noqa: E402

_HEALTH_SHARE = 10


def main() -> None:
    """Takes each step so many times; `/health` a tenth as often, because it takes longer."""
    rounds = int(sys.argv[1])
    # That nobody works is no news here.
    logging.disable()
    app.finalize()
    worker = Worker.objects.create(
        id=uuid4(), node="probe", host="probe", pid=0, pool="none", concurrency=5,
        lease_expires_at=Now() + timedelta(hours=1),
    )  # fmt: skip
    claimed: list[Claim] = []

    def claim(count: int) -> None:
        token = uuid4().hex
        claimed.extend(claims.claim_next("default", count=count, token=token, tasks=[noop.name], worker_id=worker.pk))

    def complete() -> None:
        one = claimed.pop()
        claims.complete({one.job_id: (one.token, None)})

    noop.delay()
    # One for all: each loads the middleware anew, which a server does once.
    client = Client(SERVER_NAME="localhost")
    found = {
        "enqueue one": _times(rounds, noop.delay),
        "claim one": _times(rounds, lambda: claim(1)),
        "claim five": _times(rounds, lambda: claim(5)),
        "complete one": _times(min(rounds, len(claimed)), complete),
        "/health": _times(max(3, rounds // _HEALTH_SHARE), lambda: client.get("/health")),
    }
    claims.complete({one.job_id: (one.token, None) for one in claimed})
    Worker.objects.filter(pk=worker.pk).update(dead_at=Now())
    sys.stdout.write(json.dumps(found))


def _times(rounds: int, step: Callable[[], object]) -> list[float]:
    """Milliseconds of each call, without the first, which opens connections."""
    step()
    times = []
    for _ in range(rounds - 1):
        begin = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begin))
    return times


if __name__ == "__main__":
    main()
