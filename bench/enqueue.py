"""Enqueues jobs in a loop, one at a time, as a view would: `python -m bench.enqueue APP COUNT [--due | --bulk]`.

Prints, as JSON, how many seconds that took; with `--due` each job is for a moment one second later, and the moments are
printed by job id. With `--bulk`, which is this project's alone, all are enqueued by one call.
"""

import argparse
import json
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib import import_module

import django

# Not one moment after the other: they must not fall into step with somebody's clock.
_PAUSE_SECONDS = (0.05, 0.35)


def main() -> None:
    """Reads the command line and enqueues."""
    parser = argparse.ArgumentParser()
    parser.add_argument("app")
    parser.add_argument("count", type=int)
    parser.add_argument("--due", action="store_true")
    parser.add_argument("--bulk", action="store_true")
    arguments = parser.parse_args()
    import_module(arguments.app)
    django.setup()
    measured = _due if arguments.due else _in_bulk if arguments.bulk else _at_once
    answer = measured(arguments.count)
    sys.stdout.write(json.dumps(answer))


def _at_once(count: int) -> dict[str, float]:
    from bench.tasks import noop  # a task belongs to the application that is there when it is first imported

    # The first call opens the connections.
    noop.delay()
    begin = time.perf_counter()
    for _ in range(count - 1):
        noop.delay()
    return {"seconds": time.perf_counter() - begin}


def _in_bulk(count: int) -> dict[str, float]:
    from bench.tasks import noop  # as above
    from jobs.bulk import enqueue_many  # needs Django, which is set up by now

    noop.delay()
    begin = time.perf_counter()
    enqueue_many(noop, ({} for _ in range(count - 1)))
    return {"seconds": time.perf_counter() - begin}


def _due(count: int) -> dict[str, str]:
    from bench.tasks import noop  # as above

    moments = {}
    for _ in range(count):
        moment = datetime.now(UTC) + timedelta(seconds=1)
        moments[noop.apply_async(eta=moment).id] = moment.isoformat()
        time.sleep(random.uniform(*_PAUSE_SECONDS))
    return moments


if __name__ == "__main__":
    main()
