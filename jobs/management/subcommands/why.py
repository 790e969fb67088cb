"""`manage.py jobs why ID`."""

from typing import Any

from django.core.management.base import CommandParser

from jobs import services
from jobs.management.subcommands import DONE, NOT_FOUND, Output, job_id


class Why:
    """Says why a job is not running."""

    name = "why"
    help = "Says in a sentence why a job is not running, or how it ended."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("job_id", type=job_id, metavar="ID")

    def run(self, options: dict[str, Any], output: Output) -> int:
        found = services.why(options["job_id"])
        text = found or f"There is no job {options['job_id']}: it never was, or retention has removed it."
        output.tell(text, job=str(options["job_id"]), why=found)
        return NOT_FOUND if found is None else DONE
