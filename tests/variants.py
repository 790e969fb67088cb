"""What runs with `bin/test --all` alone: the second pool, the second kind of outage, a worker that drains …

The default run has one parameter of each kind, so that it stays short.
"""

from typing import Any

import pytest
from hypothesis import settings


def variant(*values: Any, id: str | None = None) -> Any:
    """A parameter of a test that only runs with `--all`."""
    return pytest.param(*values, marks=pytest.mark.variant, id=id)


# Threads end, fail and are interrupted in other ways than processes, and the code for that is small.
POOLS = pytest.mark.parametrize("pool", ["prefork", variant("threads")])
# A worker that shuts down warmly still runs jobs, and may die as any other.
DRAINING = pytest.mark.parametrize("draining", [False, variant(True)], ids=["at work", "draining"])


def examples(*, share: float = 1.0) -> int:
    """How many examples a property gets; `share` of the usual number where one example takes long, but not of the first
    hundred."""
    return max(min(100, settings().max_examples), round(settings().max_examples * share))
