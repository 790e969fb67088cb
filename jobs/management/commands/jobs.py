"""`manage.py jobs`: what operators look at and do, at a terminal. Each word after it is a class in `subcommands`."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs.management.subcommands import USAGE, Output, Subcommand
from jobs.management.subcommands.acting import Cancel, Edit, Promote, Retry
from jobs.management.subcommands.dead_letters import DeadLetters
from jobs.management.subcommands.looking import List, Show
from jobs.management.subcommands.pausing import Pause, Resume
from jobs.management.subcommands.purge import Purge
from jobs.management.subcommands.stats import Stats
from jobs.management.subcommands.tail import Tail
from jobs.management.subcommands.why import Why
from jobs.payloads import storable

SUBCOMMANDS: tuple[Subcommand, ...] = (
    List(),
    Show(),
    Why(),
    Tail(),
    Stats(),
    Retry(),
    Edit(),
    Cancel(),
    Promote(),
    Purge(),
    Pause(),
    Resume(),
    DeadLetters(),
)


class Command(BaseCommand):
    """Hands over to the subcommand. Exits with its status where that is not 0."""

    help = "Looks at jobs and queues, and acts on them."

    def add_arguments(self, parser: CommandParser) -> None:
        words = parser.add_subparsers(title="subcommands", dest="subcommand", required=True, metavar="SUBCOMMAND")
        for subcommand in SUBCOMMANDS:
            own = words.add_parser(subcommand.name, help=subcommand.help, description=subcommand.help)
            own.add_argument("--json", action="store_true", dest="as_json", help="a line of JSON for each message")
            own.set_defaults(chosen=subcommand)
            subcommand.add_arguments(own)

    def handle(self, *args: Any, chosen: Subcommand, as_json: bool, **options: Any) -> None:
        for text in _texts(options.values()):
            if storable(text) != text:
                raise CommandError(
                    f"{text!r:.100}: there is a NUL character in it, or what is no UTF-8. PostgreSQL keeps neither.",
                    returncode=USAGE,
                )
        status = chosen.run(options, Output(self.stdout, as_json=as_json))
        if status:
            sys.exit(status)


def _texts(options: Iterable[Any]) -> Iterator[str]:
    """Those that were given; an option may be given several times, and hold a name and a value."""
    for option in options:
        for given in option if isinstance(option, list) else [option]:
            yield from (part for part in (given if isinstance(given, tuple) else [given]) if isinstance(part, str))
