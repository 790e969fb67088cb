"""The subcommands of `manage.py jobs`: one class each, listed in `jobs/management/commands/jobs.py`."""

import json
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

from django.core.management.base import CommandParser, OutputWrapper
from kombu.utils import json as kombu_json

from jobs.ids import InvalidJobId, parse_id
from jobs.management.tables import table

# Exit statuses, documented in docs/operations.md.
DONE = 0
REFUSED = 1
USAGE = 2
NOT_FOUND = 3


class Output:
    """Where a subcommand says what it has to say: sentences for people, or a line of JSON each for programs."""

    def __init__(self, stdout: OutputWrapper, *, as_json: bool) -> None:
        self._stdout = stdout
        self._as_json = as_json

    def tell(self, text: str, **facts: Any) -> None:
        """One message: `text` on a terminal, `facts` as an object with `--json`."""
        if self._as_json:
            text = json.dumps(facts, ensure_ascii=False, cls=kombu_json.JSONEncoder)
        self._stdout.write(text)

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[object]], facts: Sequence[dict[str, Any]], *, empty: str
    ) -> None:
        """A table on a terminal, a line for each of `facts` with `--json`; `empty` is what is said where none is."""
        if self._as_json:
            for one in facts:
                self.tell("", **one)
        else:
            self._stdout.write(table(head, rows, self._stdout) if rows else empty)


class Subcommand(Protocol):
    """One word after `manage.py jobs`."""

    name: str
    help: str

    def add_arguments(self, parser: CommandParser) -> None:
        """Says what may follow the word; `--json` is known already."""

    def run(self, options: dict[str, Any], output: Output) -> int:
        """Does it, and returns the exit status."""


def job_id(text: str) -> UUID:
    """An argument that is a job's id."""
    try:
        return parse_id(text)
    except InvalidJobId:
        raise ValueError(text) from None
