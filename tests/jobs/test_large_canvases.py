"""Canvases of many jobs: they are written together, and their results are read together."""

import pickle
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import pytest
from celery import chain, chord, group, shared_task
from celery.exceptions import TimeoutError as NotYet
from celery.result import GroupResult
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from jobs import enqueue
from jobs.callers import NotCommitted
from jobs.ids import new_id
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.sample_tasks import add, count_items, echo, fail_with

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("empty_redis")]

MANY = 50


@shared_task(queue="email", rate_limit="1/s")
def send_mail(number: int) -> int:
    return number


def queries() -> AbstractContextManager[CaptureQueriesContext]:
    return CaptureQueriesContext(connection)


def inserts(found: CaptureQueriesContext) -> int:
    return sum(query["sql"].startswith('INSERT INTO "jobs_job" ') for query in found.captured_queries)


CANVASES: dict[str, tuple[Any, int]] = {
    "a group": (lambda: group(echo.s(number) for number in range(MANY)), MANY),
    "groups inside of each other": (
        lambda: group(group(echo.s(number) for number in range(MANY)), echo.s(0)),
        MANY + 1,
    ),
    "chains in a group": (lambda: group(echo.s(number) | echo.s() for number in range(MANY)), MANY),
    "a chord": (lambda: chord([echo.s(number) for number in range(MANY)], count_items.s()), MANY + 1),
    "chords in a group": (lambda: group(chord([echo.s(1), echo.s(2)], echo.s()) for _ in range(MANY)), 3 * MANY),
}


@pytest.mark.parametrize("name", CANVASES)
def test_the_jobs_of_a_canvas_are_written_by_one_statement(name: str) -> None:
    make, count = CANVASES[name]
    canvas = make()
    with queries() as found:
        canvas.apply_async()
    assert inserts(found) == 1
    assert Job.objects.count() == count
    # None of them has an `eta`.
    assert not Job.objects.filter(run_at__gt=F("created_at")).exists()


def test_more_than_a_thousand_are_written_by_as_many_statements_as_there_are_thousands() -> None:
    with queries() as found:
        group(echo.s(number) for number in range(2100)).delay()
    assert (inserts(found), Job.objects.count()) == (3, 2100)


def test_one_ring_for_each_queue_says_that_they_are_there(django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks() as callbacks:
        group([*(echo.s(number) for number in range(MANY)), *(send_mail.s(number) for number in range(MANY))]).delay()
    assert len(callbacks) == 2


def test_the_members_of_a_group_start_in_their_order() -> None:
    group(echo.s(number) for number in range(MANY)).delay()
    assert [job.args for job in run_due_jobs()] == [[number] for number in range(MANY)]


def test_a_body_with_the_id_of_a_member_is_refused_though_both_are_written_together() -> None:
    one = str(new_id())
    with pytest.raises(enqueue.NotSupported, match=f"job {one} is there already"):
        chord([echo.s(1).set(task_id=one)], echo.s().set(task_id=one)).apply_async()
    assert not Job.objects.exists()


def test_a_member_whose_id_is_another_jobs_is_refused_and_nothing_is_written() -> None:
    taken = echo.delay(1)
    with pytest.raises(enqueue.NotSupported, match=f"job {taken.id} is there already"):
        chord([echo.s(2), echo.s(3).set(task_id=taken.id)], echo.s()).apply_async()
    assert Job.objects.count() == 1
    # And the next canvas is written as if nothing had been.
    assert len(group(echo.s(2), echo.s(3)).delay().results) == 2
    assert Job.objects.count() == 3


CHAINS: dict[str, Any] = {
    "a chain": lambda: chain(echo.s(1), *(echo.s() for _ in range(MANY))),
    "a chain in a chord": lambda: chord([chain(echo.s(1), *(echo.s() for _ in range(MANY)))], echo.s()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_end_of_a_step_reads_nothing_of_what_follows_it_nor_asks_for_what_cannot_be_there(name: str) -> None:
    CHAINS[name]().apply_async()
    with queries() as found:
        run_due_jobs(at_most=2 * MANY)
    statements = [query["sql"] for query in found.captured_queries]
    # The body of the chord is locked, and read, by its release.
    locks = [sql for sql in statements if sql.endswith("FOR UPDATE") and '"is_held" AND' not in sql]
    # The end of a job that is no member of a flow locks its row as it writes it.
    ends = locks if name == "a chain in a chord" else [sql for sql in statements if "SET state = 'completed'" in sql]
    assert len(ends) >= MANY
    assert not [sql for sql in locks if '"follow_ups"' in sql]
    assert not [sql for sql in statements if '"successor" IS NOT NULL' in sql]


# -- Their results ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*CANVASES, "a chain"])
def test_get_reads_the_results_of_many_jobs_together(name: str) -> None:
    canvas = CANVASES[name][0]() if name in CANVASES else chain(echo.s(1), *(echo.s() for _ in range(MANY)))
    result = canvas.apply_async()
    run_due_jobs(at_most=10 * MANY)
    with queries() as found:
        assert result.get(timeout=1) is not None
    assert len(found.captured_queries) <= 3


def test_a_group_has_the_results_of_its_members_in_their_order() -> None:
    result = group(echo.s(1), group(echo.s(2), echo.s(3)), add.s(1, 3) | group(echo.s(), echo.s())).delay()
    run_due_jobs()
    assert result.get(timeout=1) == [1, 2, 3, [4, 4]]
    told: list[Any] = []
    result.get(timeout=1, callback=lambda task_id, value: told.append(value))
    assert told == [1, 2, 3, [4, 4]]


def test_the_first_member_that_failed_says_why_and_the_others_are_told_where_nothing_is_to_be_raised() -> None:
    result = group(echo.s(1), fail_with.s(2), fail_with.s(3)).delay()
    run_due_jobs()
    with pytest.raises(Exception, match="cannot go on with 2"):
        result.get(timeout=1)
    values = result.get(timeout=1, propagate=False)
    assert [str(value) for value in values] == ["1", "cannot go on with 2", "cannot go on with 3"]


def test_whoever_waits_in_the_transaction_that_has_written_the_members_is_told_so_at_once() -> None:
    result = group(echo.s(1), echo.s(2).set(countdown=60)).delay()
    run_due_jobs()
    with pytest.raises(NotCommitted):
        result.get()


@pytest.mark.django_db(transaction=True)
def test_whoever_waits_for_a_member_that_does_not_end_is_told_in_time() -> None:
    result = group(echo.s(1), echo.s(2).set(countdown=60), group(echo.s(3))).delay()
    run_due_jobs()
    with pytest.raises(NotYet):
        result.get(timeout=0.1)
    told: list[int] = []
    with pytest.raises(NotYet):
        result.results[1].get(timeout=0.2, interval=0.05, on_interval=lambda: told.append(1))
    assert told


def test_a_group_in_which_an_id_is_no_uuid_has_nobody_to_wait_for() -> None:
    made = echo.delay(1)
    run_due_jobs()
    result = GroupResult(str(new_id()), [made, echo.AsyncResult("no uuid")])
    with pytest.raises(NotYet):
        result.get(timeout=0.1)
    assert Job.objects.get(pk=UUID(made.id)).state == "completed"


def test_a_result_is_called_and_pickled_as_celerys() -> None:
    result = echo.delay(1)
    assert repr(result) == f"<AsyncResult: {result.id}>"
    assert pickle.loads(pickle.dumps(result)) == result
