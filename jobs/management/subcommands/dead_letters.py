"""`manage.py jobs dead-letters`."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from jobs import dead_letters
from jobs.doorbell import REDIS_AWAY
from jobs.management.subcommands import DONE, REFUSED, Output


class DeadLetters:
    """Messages in Redis that are no jobs."""

    name = "dead-letters"
    help = (
        "Shows messages of other producers that were no jobs: no JSON, of an unknown task, or with arguments that the "
        "task does not take. The newest thousand are kept, and 1 MiB of them; of one that is larger than 256 KiB, the "
        "beginning is."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--return", action="store_true", dest="put_back", help="put all of them back into the queues")
        what.add_argument("--drop", action="store_true", help="remove all of them for good")

    def run(self, options: dict[str, Any], output: Output) -> int:
        try:
            if options["put_back"]:
                count = dead_letters.put_back()
                output.tell(f"Put back: {count} messages.", count=count, done=True)
                self._refuse_those_that_were_cut()
            elif options["drop"]:
                count = dead_letters.drop()
                output.tell(f"Removed: {count} messages.", count=count, done=True)
            else:
                self._show(output)
        except REDIS_AWAY as error:
            raise CommandError(f"Redis does not answer ({error}).", returncode=REFUSED) from error
        return DONE

    def _refuse_those_that_were_cut(self) -> None:
        cut = sum(one.is_cut for one in dead_letters.letters())
        if cut:
            raise CommandError(
                f"Not put back: {cut}, of which only the beginning was kept, because they were too large. Let their "
                "producer send them again; --drop removes them.",
                returncode=REFUSED,
            )

    def _show(self, output: Output) -> None:
        letters = dead_letters.letters()
        rows = [(f"{one.at:%Y-%m-%d %H:%M:%S}", one.redis_list, one.why, one.beginning) for one in letters]
        facts = [
            {
                "at": one.at,
                "list": one.redis_list,
                "why": one.why,
                "message": one.beginning,
                "left_out_bytes": one.left_out_bytes,
            }
            for one in letters
        ]
        output.table(("At (UTC)", "List", "Why", "Message"), rows, facts, empty="No message was put aside.")
