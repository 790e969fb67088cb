"""What became of Celery's tests, and which of them are known to end otherwise on the ledger."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from devstack.home import BASE_DIR

PAGE = BASE_DIR / "docs" / "celery.md"
_HEADING = "Celery's own tests"
_FOLDER = "t/integration/"
# Of several reports of one test, the first of these is its outcome.
_WORST_FIRST = ("failed", "skipped", "passed", "lost")

Outcomes = dict[str, str]


def read(path: Path) -> Outcomes:
    """The outcome of each test, by its name without the folder."""
    reports: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        outcome, _, name = line.partition(" ")
        reports.setdefault(name.removeprefix(_FOLDER), set()).add(outcome)
    return {name: min(of_one, key=_WORST_FIRST.index) for name, of_one in reports.items()}


def failed(outcomes: Mapping[str, str]) -> list[str]:
    """The tests that failed, or that their process did not outlive."""
    return sorted(name for name, outcome in outcomes.items() if outcome in ("failed", "lost"))


def counted(outcomes: Mapping[str, str]) -> Counter[str]:
    """How many tests had which outcome."""
    return Counter(outcomes.values())


def differences() -> dict[str, bool]:
    """The tests that the page names, each with its reason, and whether it fails at each time."""
    (chapter,) = re.findall(rf"^## {_HEADING}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = re.findall(r"`(test_\w+\.py::[^`]+)`( \(at times\))?", chapter)
    return {name: not at_times for name, at_times in found}


def complaints(outcomes: Mapping[str, str], known: Mapping[str, bool]) -> list[str]:
    """What the page does not say, or says wrongly, of the tests that were run on the ledger."""
    found = failed(outcomes)
    page = PAGE.relative_to(BASE_DIR)
    unknown = [f"{name} failed, and {page} does not say why it may" for name in found if name not in known]
    failing = [name for name, always in known.items() if always and outcomes.get(name) == "passed"]
    return [*unknown, *(f"{name} passed, and {page} says that it fails" for name in failing)]
