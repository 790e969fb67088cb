"""`manage.py restored` settles the jobs that a backup holds as running: after a restore, before workers start."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs import restored


class Command(BaseCommand):
    """Runs the jobs again or fails them, all in one transaction, and says how many there were."""

    help = "After a restore, before workers start: settles the jobs that were running when the backup was taken."

    def add_arguments(self, parser: CommandParser) -> None:
        choice = parser.add_mutually_exclusive_group(required=True)
        choice.add_argument("--run-again", action="store_true", help="all of them run again")
        choice.add_argument("--fail", action="store_true", help="all of them fail; the admin can run each again")

    def handle(self, *args: Any, run_again: bool, **options: Any) -> None:
        try:
            count = restored.run_again() if run_again else restored.fail()
        except restored.WorkersLive as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{count} jobs {'run again' if run_again else 'failed'}.")
