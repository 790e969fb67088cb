"""`python -m bench`, called by bin/bench: measures one item, prints its tables, and says whether it suffices."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bench import page
from bench.items import DEFAULT, ITEMS, SIZES, UnknownItem, item_named
from bench.machine import versions
from bench.processes import Stuck
from bench.result import Recorded
from bench.stand import Stand
from devstack.environment import REDIS_NAMES
from devstack.terminal import complain, say, table
from devstack.throwaway import Servers

# Flags that change the sizes of an item or judge its figures, and the items that have them.
_ITEMS_WITH = {
    "jobs": ("drain", "before"),
    "alternations": ("drain", "before"),
    "drain_only": ("drain",),
    "at_least": ("drain",),
    "bulk_at_least": ("drain",),
    "commit": ("before",),
}


def main(words: list[str]) -> int:
    """Measures; 1 where we are not as many times quicker as asked, 2 where it could not be begun or finished."""
    arguments = _parser().parse_args(words)
    # So that whatever was started is ended in good order.
    signal.signal(signal.SIGTERM, _end)
    for name in ("DATABASE_URL", *REDIS_NAMES):
        # Everything in the databases is removed between two measurements: never those that somebody named.
        os.environ.pop(name, None)
    try:
        recorded = _measured(arguments)
    except (Stuck, UnknownItem, _Unfit) as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("Interrupted; nothing is recorded.")
        return 128 + signal.SIGINT
    for one in recorded.result.tables:
        say()
        say(table([one.columns, *one.rows]))
    say()
    say(recorded.result.how)
    if arguments.record:
        page.record(recorded, titles={name: item.title for name, item in ITEMS.items()})
    return _judged(recorded.result.figures, arguments)


class _Unfit(ValueError):
    """A flag that means nothing for the item."""


def _measured(arguments: argparse.Namespace) -> Recorded:
    item = item_named(arguments.item)
    for name, items in _ITEMS_WITH.items():
        if getattr(arguments, name) and arguments.item not in items:
            flag = name.replace("_", "-")
            raise _Unfit(f"--{flag} goes with the item {' or '.join(items)}, not with {arguments.item}.")
    # The smallest size measures nothing, and is done sooner so.
    servers = Servers(durable=arguments.size != "tiny")
    if item.prepare is not None:
        item.prepare(servers)
    try:
        servers.start()
        facts = versions(servers)
        result = item.measure(Stand.on(servers), _sizes(arguments, item.sizes[arguments.size]))
    finally:
        servers.stop()
    moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return Recorded(item=arguments.item, measured_at=moment, size=arguments.size, versions=facts, result=result)


def _sizes(arguments: argparse.Namespace, sizes: Any) -> Any:
    """Those of the item, with what its flags say."""
    names = ("jobs", "alternations", "commit")
    changed: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name))}
    if arguments.drain_only:
        changed["bulk_jobs"] = 0
    return replace(sizes, **changed)


def _judged(figures: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    ratio, bulk_ratio = figures.get("ratio", 0.0), figures.get("bulk_ratio")
    if ratio < arguments.at_least:
        complain(f"{ratio:.2f} times the peer's rate; expected at least {arguments.at_least:g}.")
        return 1
    if bulk_ratio is not None and bulk_ratio < arguments.bulk_at_least:
        complain(f"In bulk {bulk_ratio:.1f} times one at a time; expected at least {arguments.bulk_at_least:g}.")
        return 1
    return 0


def _end(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name.ljust(28)}{item.title}" for name, item in ITEMS.items())
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description="Measures one item, on servers of its own, within 15 minutes; with --quick, within about 2.",
        epilog=f"items:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("item", nargs="?", default=DEFAULT, metavar="name", help="see below (default: %(default)s)")
    parser.add_argument(
        "--quick", dest="size", action="store_const", const="quick", default="full", help="less of everything"
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: only to see that it works")
    parser.add_argument("--record", action="store_true", help="keep the result in docs/bench and docs/benchmarks.md")
    shared = parser.add_argument_group(f"of the items {DEFAULT} and before")
    shared.add_argument("--jobs", type=int, help="jobs per drain")
    shared.add_argument("--alternations", type=int, help="drains of each side")
    shared.add_argument("--commit", metavar="NAME", help="of before: the commit, as git names it (default: HEAD)")
    own = parser.add_argument_group(f"of the item {DEFAULT}")
    own.add_argument("--drain-only", action="store_true", help="leave out jobs in bulk")
    own.add_argument("--at-least", type=float, default=0, metavar="N", help="fail under N times the peer's rate")
    own.add_argument(
        "--bulk-at-least", type=float, default=0, metavar="N", help="fail under N times our own rate one at a time"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
