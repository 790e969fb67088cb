"""`python -m bench`, called by bin/bench: measures both sides in turn, prints a table, and says whether it suffices."""

import argparse
import os
import sys

from bench import sides
from bench.drain import drain
from bench.due import lateness_seconds
from bench.paced import paced_seconds
from bench.processes import Stuck
from bench.report import Report
from bench.window import redis_bytes
from devstack.environment import REDIS_NAMES
from devstack.home import BASE_DIR
from devstack.terminal import complain, say, table
from devstack.throwaway import Servers

PAGE = BASE_DIR / "docs" / "benchmarks.md"
_BULK = 20_000
_BACKLOGS = (1_000, 200_000)


def main(words: list[str]) -> int:
    """Runs the benchmark; 1 where we are not as many times quicker as asked, 2 where it could not be finished."""
    arguments = _parser().parse_args(words)
    for name in ("DATABASE_URL", *REDIS_NAMES):
        # Everything in the databases is removed between two measurements: never those that somebody named.
        os.environ.pop(name, None)
    servers = Servers(durable=True)
    try:
        servers.start()
        report = _measured(servers, arguments)
    except Stuck as error:
        complain(str(error))
        return 2
    finally:
        servers.stop()
    say(table(report.rows()))
    if arguments.record:
        report.record(PAGE)
    if report.ratio < arguments.at_least:
        complain(f"{report.ratio:.2f} times the peer's rate; expected at least {arguments.at_least:g}.")
        return 1
    if report.bulk_per_second and report.bulk_ratio < arguments.bulk_at_least:
        complain(f"In bulk {report.bulk_ratio:.1f} times one at a time; expected at least {arguments.bulk_at_least:g}.")
        return 1
    return 0


def _measured(servers: Servers, arguments: argparse.Namespace) -> Report:
    both = ours, peer = sides.both(servers)
    report = Report(jobs=arguments.jobs, names=(ours.name, peer.name))
    for side in both:
        side.prepare()
    for number in range(1, arguments.alternations + 1):
        for side, drains in zip(both, report.drains, strict=True):
            drains.append(drain(side, servers, count=arguments.jobs))
            say(f"{number}/{arguments.alternations} {side.name}: {drains[-1].drained_per_second:.0f} jobs a second")
    if not arguments.drain_only:
        say("Enqueueing in bulk …")
        for _ in range(arguments.alternations):
            ours.empty()
            report.bulk_per_second.append((_BULK - 1) / ours.enqueue(_BULK, "--bulk")["seconds"])
        say("Waiting for jobs that are due in a second …")
        report.late_seconds = [lateness_seconds(side, servers, count=arguments.due) for side in both]
        say("Pacing …")
        report.paced = [paced_seconds(ours, servers) for _ in range(arguments.alternations)]
        say("Filling the window …")
        report.redis_bytes = {backlog: redis_bytes(ours, servers, backlog=backlog) for backlog in _BACKLOGS}
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/bench", description="No-op jobs, this project and Django + Celery + django-celery-results in turn."
    )
    parser.add_argument("--jobs", type=int, default=1500, help="jobs per drain (default: %(default)s)")
    parser.add_argument("--alternations", type=int, default=3, help="drains of each side (default: %(default)s)")
    parser.add_argument("--due", type=int, default=100, help="delayed jobs per side (default: %(default)s)")
    parser.add_argument("--drain-only", action="store_true", help="leave out delayed jobs and the window")
    parser.add_argument("--at-least", type=float, default=0, metavar="N", help="fail under N times the peer's rate")
    parser.add_argument(
        "--bulk-at-least", type=float, default=0, metavar="N", help="fail under N times our own rate one at a time"
    )
    parser.add_argument("--record", action="store_true", help=f"append the table to {PAGE.relative_to(BASE_DIR)}")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
