"""Items from their command line to their table, with real servers and workers: those are variants."""

import pytest

from tests.bench.running import bench
from tests.variants import variant

# Each starts servers and workers of its own: on busy cores half a minute.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("item", "rows"),
    [
        variant("due", ["enqueued → begun, p50", "due → begun, p99"]),
        variant("canvas", ["group, until it is called", "chord, until its result is there", "chain, until its result"]),
        variant("idle", ["web", "worker-email", "beat", "flower", "the project", "postgres", "all of it"]),
        variant("backlog-prefork-keys", ["20", "50", "400, first window", "400, later window"]),
        variant("growth-ended", ["jobs drained a second", "claim one, p50, ms", "/health, p99, ms"]),
        variant("before", ["drain: worker and PostgreSQL", "enqueueing: caller and PostgreSQL"]),
        variant("scans-unpaced", ["1, before", "2, busy", "3, beside", "4, after"]),
        variant("held-rate", ["1, before", "2, beside", "3, after", "`UPDATE jobs_job"]),
    ],
)
def test_an_item_is_measured_on_servers_of_its_own_and_prints_its_table(item: str, rows: list[str]) -> None:
    done = bench(item)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line.strip() for line in done.stdout.splitlines()]
    for row in rows:
        assert any(line.startswith(row) for line in printed), f"{row} is not in\n{done.stdout}"


@pytest.mark.variant
def test_the_drain_says_when_it_is_not_as_many_times_quicker_as_asked() -> None:
    done = bench("--drain-only", "--at-least=1000")
    assert done.returncode == 1, done.stderr
    assert "expected at least 1000" in done.stderr
    rows = [line for line in done.stdout.splitlines() if "jobs drained a second" in line]
    assert len(rows) == 1, done.stdout


def test_an_item_that_is_not_there_is_refused_with_the_names_of_those_that_are() -> None:
    done = bench("backlog")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "There is no item 'backlog'. Items: drain, before, paced, due, canvas, idle, backlog-prefork-unpaced, "
    )
    assert done.stdout == ""


def test_a_flag_of_another_item_is_refused() -> None:
    done = bench("paced", "--at-least=3")
    assert (done.returncode, done.stderr) == (2, "--at-least goes with the item drain, not with paced.\n")


def test_a_commit_that_is_none_is_refused() -> None:
    done = bench("before", "--commit=no-such-commit")
    assert done.returncode == 2
    assert done.stderr.startswith("git rev-parse --short no-such-commit^{commit}: fatal: ")
