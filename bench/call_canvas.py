"""Calls canvases in a process of its own, as a view would, and waits for their results: `… APP KIND COUNT ROUNDS`.

Prints, as JSON, for each round how many seconds the call took, and how many it was until the result was there.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from typing import Any

import django

_PATIENCE_SECONDS = 300


def main() -> None:
    """Reads the command line and calls."""
    parser = argparse.ArgumentParser()
    parser.add_argument("app")
    parser.add_argument("kind")
    parser.add_argument("count", type=int)
    parser.add_argument("rounds", type=int)
    arguments = parser.parse_args()
    import_module(arguments.app)
    django.setup()
    # The first call opens the connections.
    _seconds(arguments.kind, 2)
    sys.stdout.write(json.dumps([_seconds(arguments.kind, arguments.count) for _ in range(arguments.rounds)]))


def _seconds(kind: str, count: int) -> tuple[float, float]:
    canvas, expected = _made(kind, count)
    begin = time.perf_counter()
    result = canvas.apply_async()
    called = time.perf_counter()
    found = result.get(timeout=_PATIENCE_SECONDS)
    ended = time.perf_counter()
    if found != expected:
        raise RuntimeError(f"{kind}: the result is {found!r:.200}")
    return called - begin, ended - begin


def _made(kind: str, count: int) -> tuple[Any, Any]:
    """A canvas, and its result."""
    from celery import chain, chord, group

    from bench.tasks import give, one_more, sum_up  # a task belongs to the application that is there at first

    if kind == "chain":
        return chain(one_more.s(0), *(one_more.s() for _ in range(count - 1))), count
    members = [give.s(number) for number in range(count)]
    return (group(members), list(range(count))) if kind == "group" else (chord(members, sum_up.s()), sum(range(count)))


if __name__ == "__main__":
    main()
