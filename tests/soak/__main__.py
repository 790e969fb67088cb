"""`python -m tests.soak`: starts servers of its own, lets the storm rage, prints the account."""

import argparse
import os
import random
import sys

import django
from django.core.management import call_command

from devstack.environment import REDIS_NAMES
from devstack.terminal import complain, say, table
from devstack.throwaway import Servers

# Short leases, so that many deaths fit into a minute; the shares are those of the defaults.
_SETTINGS = {
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "JOBS_LEASE_SECONDS": "5",
    "JOBS_HEARTBEAT_SECONDS": "1.25",
    "JOBS_DISPATCH_SECONDS": "0.25",
    "JOBS_GRACE_SECONDS": "2",
}


def main(words: list[str]) -> int:
    """The exit status: 0 where nothing was lost and nothing doubled, 1 otherwise."""
    arguments = _parser().parse_args(words)
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    for name in ("DATABASE_URL", *REDIS_NAMES):
        # Servers are stopped and wiped here: never those that somebody named.
        os.environ.pop(name, None)
    servers = Servers(durable=True)
    try:
        servers.start()
        os.environ.update({**servers.variables, **_SETTINGS})
        django.setup()
        call_command("migrate", verbosity=0)
        # The ledger's modules can be imported from here on.
        from tests.soak.storm import Storm

        minutes = arguments.minutes or (5 if arguments.redis_away else 1)
        say(f"{minutes:g} minutes, seed {seed}")
        storm = Storm(servers, seed=seed, backlog=arguments.backlog)
        account = (storm.starve if arguments.redis_away else storm.rage)(seconds=minutes * 60)
    finally:
        servers.stop()
    say(table(account.rows()))
    for word in account.complaints:
        complain(word)
    return 1 if account.complaints else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long the storm lasts (default: 1; with --redis-away: 5)")
    parser.add_argument(
        "--redis-away",
        action="store_true",
        help="do nothing but take Redis away all the time: killed, frozen and wiped for a third each",
    )
    parser.add_argument(
        "--backlog",
        type=int,
        default=0,
        metavar="N",
        help="keep N jobs waiting in three queues (default: some hundred)",
    )
    parser.add_argument("--seed", type=int, help="the same acts in the same order; how they meet the jobs is chance")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
