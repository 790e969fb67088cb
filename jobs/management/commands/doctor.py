"""`manage.py doctor`: one look at everything, each finding with its cure."""

import json
import sys
from textwrap import wrap
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobs import doctor
from jobs.doctor import Finding, Level

_MARKS = {Level.FACT: "·", Level.GOOD: "✓", Level.WARNING: "!", Level.ERROR: "✗"}
_WIDTH = 100


class Command(BaseCommand):
    """Prints what was found. Exits with 1 where something is an error, with `--strict` also for a warning."""

    help = "Looks at servers, clocks, workers, queues, leases, settings and parts; says what is wrong and what to do."
    # They are an examination of their own; a failing one must not hide the others.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", dest="as_json", help="one line of JSON for each finding")
        parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")

    def handle(self, *args: Any, as_json: bool, strict: bool, **options: Any) -> None:
        levels: list[Level] = []
        for title, findings in doctor.examine():
            if not as_json:
                self.stdout.write(self.style.MIGRATE_HEADING(title))
            for finding in findings:
                levels.append(finding.level)
                self.stdout.write(_as_json(title, finding) if as_json else self._in_words(finding))
        errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
        if not as_json:
            self.stdout.write(f"\n{_counted(errors, 'error')}, {_counted(warnings, 'warning')}.")
        if errors or (strict and warnings):
            sys.exit(1)

    def _in_words(self, finding: Finding) -> str:
        style = {Level.ERROR: self.style.ERROR, Level.WARNING: self.style.WARNING}.get(finding.level, str)
        lines = wrap(f"{_MARKS[finding.level]} {finding.text}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        cure = wrap(f"→ {finding.cure}", _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join([*(style(f"  {line}") for line in lines), *(f"  {line}" for line in cure if finding.cure)])


def _as_json(title: str, finding: Finding) -> str:
    facts = {"examination": title, "level": finding.level, "text": finding.text, "cure": finding.cure}
    return json.dumps(facts, ensure_ascii=False)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
