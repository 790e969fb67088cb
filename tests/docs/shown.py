"""Pages of which all is tested: a table names each bullet and paragraph by a phrase of its own, and what shows it."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from devstack.home import BASE_DIR

Shown = Mapping[str, Sequence[str]]


def in_file(path: str, *names: str) -> list[str]:
    """Tests of one file, as `path::name`."""
    return [f"{path}::{name}" for name in names]


def statements(page: str) -> list[str]:
    """The bullets and paragraphs of a page, each as one line; no headings."""
    # The last part of one page is held by `bin/celery-suite`.
    text, _, _ = (BASE_DIR / page).read_text().partition("\n## Celery's own tests\n")
    found = re.split(r"\n\n+|\n(?=\* )", text)
    return [" ".join(one.split()).removeprefix("* ") for one in found if one.strip() and not one.startswith("#")]


def wrong_phrases(page: str, shown: Shown) -> dict[str, int]:
    """The phrases of the table that are not in exactly one statement, with the number of those in which they are."""
    counts = {phrase: sum(phrase in one for one in statements(page)) for phrase in shown}
    return {phrase: count for phrase, count in counts.items() if count != 1}


def without_a_test(page: str, shown: Shown) -> list[str]:
    """The statements of which the table says nothing."""
    told = [phrase for phrase, tests in shown.items() if tests]
    return [one for one in statements(page) if not any(phrase in one for phrase in told)]


def unknown_tests(shown: Shown) -> list[str]:
    """What the table names as a test, and is none."""
    return sorted({test for tests in shown.values() for test in tests if not _exists(test)})


def _exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return (BASE_DIR / path).is_file() and name in _tests_of(path)


@cache
def _tests_of(path: str) -> frozenset[str]:
    return frozenset(_named_tests(ast.parse((BASE_DIR / path).read_text()).body))


def _named_tests(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _named_tests(node.body, f"{node.name}::")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield f"{prefix}{node.name}"
