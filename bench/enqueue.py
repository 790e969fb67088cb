"""Enqueues jobs in a process of its own, as a view would: `python -m bench.enqueue APP COUNT [--bulk | --moments]`.

Prints, as JSON, how many seconds it took to enqueue them in a loop, one at a time, and how many of the processor's;
with `--bulk`, which is this project's alone, by one call. With `--moments` it pauses between them, and prints by job id
from when on each could have run: when it was enqueued, or, with `--due`, a second later.
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
_AHEAD_SECONDS = 1


def main() -> None:
    """Reads the command line and enqueues."""
    parser = argparse.ArgumentParser()
    parser.add_argument("app")
    parser.add_argument("count", type=int)
    parser.add_argument("--bulk", action="store_true")
    parser.add_argument("--moments", action="store_true")
    parser.add_argument("--due", action="store_true")
    arguments = parser.parse_args()
    import_module(arguments.app)
    django.setup()
    if arguments.moments:
        answer = _moments(arguments.count, is_due=arguments.due)
    else:
        answer = (_in_bulk if arguments.bulk else _at_once)(arguments.count)
    sys.stdout.write(json.dumps(answer))


def _at_once(count: int) -> dict[str, float]:
    from bench.tasks import noop  # a task belongs to the application that is there when it is first imported

    # The first call opens the connections.
    noop.delay()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    for _ in range(count - 1):
        noop.delay()
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu_begin}


def _in_bulk(count: int) -> dict[str, float]:
    from bench.tasks import noop  # as above
    from jobs.bulk import enqueue_many  # needs Django, which is set up by now

    noop.delay()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    enqueue_many(noop, ({} for _ in range(count - 1)))
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu_begin}


def _moments(count: int, *, is_due: bool) -> dict[str, float]:
    from bench.tasks import moment  # as above

    # The first call opens the connections, and is not counted.
    moment.delay()
    moments = {}
    for _ in range(count):
        time.sleep(random.uniform(*_PAUSE_SECONDS))
        eta = datetime.now(UTC) + timedelta(seconds=_AHEAD_SECONDS)
        begin = eta.timestamp() if is_due else time.time()
        moments[moment.apply_async(eta=eta if is_due else None).id] = begin
    return moments


if __name__ == "__main__":
    main()
