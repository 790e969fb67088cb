"""`manage.py jobs purge`."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from jobs import purge
from jobs.management import tables
from jobs.management.subcommands import DONE, REFUSED, USAGE, Output, actors, filters
from jobs.states import END_STATES


class Purge:
    """Removes ended jobs before retention does."""

    name = "purge"
    help = (
        "Removes ended jobs that match, with their attempts and log lines, before retention does. What is alive stays, "
        "and so does what something alive still needs. Statistics stay as they are."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        filters.add_arguments(parser)
        parser.add_argument("--all", action="store_true", dest="all_jobs", help="needed where the filter is empty")
        parser.add_argument("--dry-run", action="store_true", help="only say how many match")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        actors.add_argument(parser)

    def run(self, options: dict[str, Any], output: Output) -> int:
        wanted = filters.given(options)
        if wanted.is_empty and not options["all_jobs"]:
            raise CommandError("Give a filter, or --all.", returncode=USAGE)
        if wanted.state is not None and wanted.state not in END_STATES:
            raise CommandError(f"Jobs that are {wanted.state} have not ended: cancel them first.", returncode=USAGE)
        count = purge.purgeable(wanted).count()
        words = f"{count} jobs: {wanted.in_words()}"
        if options["dry_run"]:
            output.tell(f"Would be removed: {words}.", count=count, done=False)
            return DONE
        if not options["yes"]:
            if not tables.is_interactive():
                raise CommandError("Nobody can be asked here: give --yes.", returncode=USAGE)
            if input(f"Remove for good: {words}? [y/N] ").strip().lower() not in ("y", "yes"):
                output.tell("Nothing was removed.", count=0, done=False)
                return REFUSED
        count = purge.purge(wanted=wanted, actor=actors.named(options["actor"]))
        output.tell(f"Removed: {count} jobs.", count=count, done=True)
        return DONE
