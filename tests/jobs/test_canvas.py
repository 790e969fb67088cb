"""Canvases as people write them: called again, with ids of their own, with large results, with what cannot follow."""

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import Celery, Task, chain, chord, group, shared_task
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import Ignore
from django.db import connection, transaction

from jobs import enqueue, services
from jobs.app import UnknownTask
from jobs.errors import Permanent
from jobs.ids import new_id
from jobs.models import Flow, Job
from jobs.options import InvalidOption
from jobs.signals import job_failed
from jobs.task import JobTask
from jobs.testing import run_due_jobs
from tests.sample_tasks import add, echo, fail_for_good, remember_failed_id

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("empty_redis")]


@shared_task(base=Task)
def foreign(value: Any) -> Any:
    return value


@shared_task(queue="default")
def many_bytes(count: int) -> str:
    return "x" * count


@shared_task(queue="default")
def length(text: str) -> int:
    return len(text)


@shared_task(bind=True, queue="default")
def becomes_a_chain_that_fails(self: Any) -> None:
    self.replace(add.si(1, 2) | fail_for_good.si())


@shared_task(queue="default")
def enqueues_another() -> Any:
    return add.delay(1, 2)


@shared_task(queue="default")
def raises_as_an_errback(request: Any, error: BaseException, traceback: str) -> None:
    raise ZeroDivisionError("the errback is broken as well")


@shared_task(queue="default")
def sees(request: Any, error: BaseException, traceback: str) -> None:
    SEEN.append(str(error))


SEEN: list[str] = []
CANVASES: dict[str, Any] = {
    "a task": lambda: add.s(1, 2),
    "a linked task": lambda: add.s(1, 2).on_error(remember_failed_id.s()).set(link=[echo.s()]),
    "a chain": lambda: add.s(1, 2) | add.s(10),
    "a chain of one": lambda: chain(add.s(1, 2)),
    "a chain that ends in a group": lambda: add.s(1, 2) | group(add.s(10), add.s(20)),
    "a group in the middle": lambda: add.s(1, 2) | group(add.s(10), add.s(20)) | echo.s(),
    "a chain in a chain": lambda: chain(add.s(1, 2), chain(add.s(3), add.s(4))),
    "a group": lambda: group(add.s(1, 2), add.s(1, 2) | add.s(10)),
    "a chord": lambda: chord([add.s(1, 2), add.s(3, 4) | add.s(1)], echo.s()),
    "a chord and more": lambda: chord([add.s(1, 2), add.s(3, 4)], echo.s()) | echo.s(),
}


def what_ran() -> Counter[str]:
    return Counter(f"{job.task}{job.args}={job.result}" for job in run_due_jobs())


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_runs_as_often_as_it_is_called(name: str) -> None:
    CANVASES[name]().delay()
    once = what_ran()
    again = CANVASES[name]()
    for _ in range(3):
        again.delay()
    thrice = what_ran()
    assert thrice == Counter({what: 3 * count for what, count in once.items()})
    assert not Job.objects.exclude(state="completed").exists()


class CalledMeanwhile(JobTask):
    """Another thread calls the same canvas while this one does."""

    canvas: Any = None

    def apply_async(self, *args: Any, **options: Any) -> Any:
        canvas, CalledMeanwhile.canvas = CalledMeanwhile.canvas, None
        if canvas is not None:
            canvas.delay()
        return super().apply_async(*args, **options)


@shared_task(base=CalledMeanwhile, queue="default")
def first() -> int:
    return 1


CALLED_MEANWHILE: dict[str, Any] = {
    "a chain": lambda: first.s() | add.s(10),
    "a chain that ends in a group": lambda: first.s() | group(add.s(10), add.s(20)),
    "a chain that ends in a chord": lambda: first.s() | chord([add.s(10), add.s(20)], echo.s() | echo.s()) | echo.s(),
    "a group": lambda: group(first.s(), add.s(1, 2) | add.s(10)),
    "a chord": lambda: chord([first.s(), add.s(1, 2) | add.s(10)], echo.s() | echo.s()),
}


@pytest.mark.parametrize("name", CALLED_MEANWHILE)
def test_threads_may_call_one_canvas_at_the_same_time(name: str) -> None:
    canvas = CALLED_MEANWHILE[name]()
    canvas.delay()
    once = what_ran()
    CalledMeanwhile.canvas = canvas
    canvas.delay()
    canvas.delay()
    assert what_ran() == Counter({what: 3 * count for what, count in once.items()})
    assert not Job.objects.exclude(state="completed", error="").exists()


@pytest.mark.parametrize("together", [group, lambda *members: chord(members, echo.s())], ids=["group", "chord"])
def test_a_chain_that_is_a_group_of_one_may_stand_in_two_places(together: Any) -> None:
    same = chain(group(add.si(1, 2)))
    together(same, same).delay()
    assert what_ran()[f"{add.name}[1, 2]=3"] == 2


def test_an_id_that_the_caller_gives_is_one_job_however_often_it_is_sent() -> None:
    named = chain(add.s(1, 2), add.s(10)).set(task_id=str(new_id()))
    for _ in range(3):
        named.delay()
    assert what_ran()[f"{add.name}[3, 10]=13"] == 1


@pytest.mark.parametrize(("name", "begins"), [("link", add.si(1, 2)), ("link_error", fail_for_good.si())])
def test_what_follows_has_the_id_that_it_was_given(name: str, begins: Any) -> None:
    step = remember_failed_id.s()
    result = step.freeze()
    first = begins.apply_async(**{name: step})
    run_due_jobs()
    assert result.state == "SUCCESS"
    if name == "link_error":
        # An operator runs it again: it fails again, and its errback has run under that id already.
        services.retry_job(job_id=UUID(first.id), actor="ann")
        run_due_jobs()
        assert Job.objects.filter(task=step.task, args=[first.id]).count() == 2


def same_id(make: Any) -> Any:
    one = str(new_id())
    return make(one)


TWICE: dict[str, Any] = {
    "two steps": lambda one: chain(add.s(1, 2).set(task_id=one), echo.s().set(task_id=one)),
    "later steps": lambda one: chain(add.s(1, 2), echo.s().set(task_id=one), echo.s(), echo.s().set(task_id=one)),
    "a link and its job": lambda one: add.s(1, 2).set(task_id=one, link=[echo.s().set(task_id=one)]),
    "two links": lambda one: add.s(1, 2).set(link=[echo.s().set(task_id=one), echo.s().set(task_id=one)]),
    "members": lambda one: group(add.s(1, 2).set(task_id=one), add.s(3, 4).set(task_id=one)),
    "members of a later group": lambda one: (
        add.s(1, 2) | group(add.s(3).set(task_id=one), add.s(4).set(task_id=one)) | echo.s()
    ),
}
WRONG: dict[str, Any] = {
    "an unknown queue": lambda: chain(add.s(1, 2), echo.s().set(queue="nobodys"), echo.s()),
    "an unknown queue in a group": lambda: add.s(1, 2) | group(echo.s(), echo.s().set(queue="nobodys")),
    "an unknown queue of a body": lambda: add.s(1, 2) | chord([echo.s()], echo.s().set(queue="nobodys")),
    "an unknown task": lambda: add.s(1, 2).set(link=[no_such()]),
    "a rate": lambda: add.s(1, 2).set(link=[echo.s().set(rate_limit="many")]),
    "quiet hours": lambda: add.s(1, 2).set(link=[echo.s().set(quiet_hours="x")]),
    "dedup seconds": lambda: add.s(1, 2).set(link=[echo.s().set(dedup_seconds="x", dedup_key="k")]),
    "an exchange": lambda: add.s(1, 2).set(link=[echo.s().set(exchange="x")]),
    "an unknown option": lambda: add.s(1, 2).set(link=[echo.s().set(foo=1)]),
    "limits": lambda: add.s(1, 2).set(link=[echo.s().set(soft_time_limit=5, time_limit=1)]),
    "arguments": lambda: chain(add.s(1, 2), add.s(1, 2)),
    "no arguments": lambda: chain(add.s(1, 2), add.si()),
    "a step's own link": lambda: chain(add.s(1, 2), echo.s().set(link=[echo.s().set(queue="nobodys")])),
    "an errback": lambda: add.s(1, 2).set(link_error=[remember_failed_id.s().set(queue=5)]),
}


def no_such() -> Any:
    step = echo.s()
    step["task"] = "no.such"
    return step


@pytest.mark.parametrize("name", [*TWICE, *WRONG])
def test_what_could_not_follow_is_refused_with_the_call_and_nothing_is_written(name: str) -> None:
    canvas = same_id(TWICE[name]) if name in TWICE else WRONG[name]()
    with pytest.raises((InvalidOption, ValueError, TypeError, UnknownTask)):
        canvas.apply_async()
    # The caller's transaction goes on.
    assert not Job.objects.exists()


def test_a_step_whose_id_is_another_jobs_fails_in_words_and_what_comes_after_it_is_cancelled() -> None:
    taken = add.delay(5, 5)
    run_due_jobs()
    last = chain(add.s(1, 2), echo.s().set(task_id=taken.id), echo.s()).apply_async()
    run_due_jobs()
    assert "is there already" in Job.objects.get(task=add.name, args=[1, 2]).error
    assert last.state == "REVOKED"
    assert Job.objects.get(pk=taken.id).result == 10


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "canvas",
    [
        lambda: group(add.s(1, 2), add.s(1)),
        lambda: group(add.s(1, 2), group(add.s(3, 4), add.s(5, 6) | add.s(1, 2))),
        lambda: chord([add.s(1, 2), add.s(1)], echo.s()),
        lambda: chord([add.s(1, 2), add.s(3, 4)], add.s(1, 2)),
    ],
    ids=["a group", "a group in a group", "a chord", "a chord's body"],
)
def test_of_a_canvas_with_a_wrong_member_nothing_is_written(canvas: Any) -> None:
    with pytest.raises(TypeError):
        canvas().apply_async()
    assert not Job.objects.exists()
    assert not Flow.objects.exists()


def test_groups_inside_of_a_group_keep_their_order() -> None:
    inner = group(echo.s(4), group(echo.s(5), echo.s(6)))
    result = group(group(echo.s(1), echo.s(2)), echo.s(3), inner, echo.s(7)).apply_async()
    run_due_jobs()
    assert result.get(timeout=1) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("options", [{"interval": 3600}, {"max_retries": 0}, {"interval": 0.1, "max_retries": 1}])
def test_the_options_of_a_chord_that_speak_of_polling_mean_nothing(options: dict[str, Any]) -> None:
    later = chord([echo.s(1), echo.s(2).set(countdown=60)], echo.s(), **options).apply_async()
    at_call = chord([echo.s(3), echo.s(4)], echo.s()).apply_async(**options)
    in_a_chain = (echo.s(5) | chord([echo.s(), echo.si(6)], echo.s(), **options) | echo.s()).apply_async()
    run_due_jobs()
    assert (later.state, at_call.get(timeout=1), in_a_chain.get(timeout=1)) == ("PENDING", [3, 4], [5, 6])
    run_due_jobs(ahead=timedelta(minutes=2))
    assert later.get(timeout=1) == [1, 2]


@pytest.mark.parametrize("count", [300_000, 1_000_000])
def test_a_result_may_be_handed_on_however_large_it_may_be(count: int) -> None:
    last = chain(many_bytes.s(count), length.s(), echo.s()).apply_async()
    run_due_jobs()
    assert last.get(timeout=1) == count


def test_what_cannot_follow_any_more_has_failed_and_its_errbacks_are_called() -> None:
    step = add.s(1).on_error(remember_failed_id.s())
    last = chain(add.s(1, 2), step, echo.s()).apply_async()
    first = Job.objects.get(task=add.name)
    # As where a deployment has taken the task away.
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_job SET follow_ups = replace(follow_ups::text, %s, 'gone.task')::jsonb WHERE id = %s",
            [add.name, first.pk],
        )
    run_due_jobs()
    failed = Job.objects.get(task="gone.task")
    assert failed.state == "failed"
    assert "There is no task 'gone.task'" in failed.error
    assert (failed.args, failed.parent_id) == ([3, 1], first.pk)
    assert Job.objects.get(task=remember_failed_id.name).args == [str(failed.pk)]
    assert last.state == "FAILURE"
    with pytest.raises(Exception, match=r"gone\.task"):
        last.get(timeout=1)


@pytest.mark.parametrize(
    "canvas",
    [
        lambda: chord([foreign.s(2), echo.s(8)], echo.s()),
        lambda: chord([echo.s(8), echo.s(2) | foreign.s()], echo.s()),
        lambda: group(echo.s(8), foreign.s(2)) | echo.s(),
        lambda: chord([echo.s(8)], foreign.s()),
    ],
)
def test_a_chord_with_a_task_that_is_no_job_is_refused(canvas: Any) -> None:
    with pytest.raises(enqueue.NotSupported, match=r"foreign has a base class of its own"):
        canvas().apply_async()
    assert not Job.objects.exists()


def test_celery_itself_leaves_the_rest_of_a_chain_pending_where_a_step_is_ignored_or_revoked() -> None:
    app = Celery("plain", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="ignores")
    def ignores() -> None:
        raise Ignore

    for end in ("ignored", "revoked"):
        whole = chain(ignores.s(), ignores.si()).apply_async()
        first = whole.parent.id
        request = {"id": first, "chain": [dict(ignores.si().set(task_id=whole.id))]}
        if end == "ignored":
            build_tracer(ignores.name, ignores, app=app)(first, (), {}, request)
        else:
            app.backend.mark_as_revoked(first, request=Context(request))
        assert (end, whole.state) == (end, "PENDING")


def test_a_job_that_goes_on_as_a_chain_fails_as_that_did() -> None:
    result = becomes_a_chain_that_fails.delay()
    run_due_jobs()
    assert result.state == "FAILURE"
    with pytest.raises(Exception, match="the mailbox does not exist") as raised:
        result.get(timeout=1)
    assert type(raised.value).__name__ == "Permanent"


def test_a_job_may_return_the_result_of_another_that_it_has_enqueued() -> None:
    result = enqueues_another.delay()
    run_due_jobs()
    inner = Job.objects.get(task=add.name)
    assert result.get(timeout=1) == [[str(inner.pk), None], None]


@pytest.mark.django_db(transaction=True)
def test_an_errback_that_raises_ends_nothing_that_comes_after_it(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []
    SEEN.clear()

    def receive(**facts: Any) -> None:
        told.append(facts["job_id"])

    job_failed.connect(receive)
    try:
        result = fail_for_good.apply_async(link_error=[raises_as_an_errback.s(), sees.s()])
        run_due_jobs()
    finally:
        job_failed.disconnect(receive)
    assert SEEN == ["the mailbox does not exist"]
    assert [str(job_id) for job_id in told] == [result.id]
    assert "the errback is broken as well" in caplog.text
    with transaction.atomic():
        assert Job.objects.get(pk=result.id).state == "failed"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "body", [echo.s(), echo.s() | echo.s(), group(echo.si(1), echo.s())], ids=["task", "chain", "group"]
)
def test_whoever_waits_for_a_chord_is_told_the_error_of_its_header(body: Any) -> None:
    result = chord([add.si(1, 2), fail_for_good.si()], body).delay()
    with pytest.raises(Permanent, match="the mailbox does not exist"):
        result.get(timeout=5, on_interval=lambda *_: run_due_jobs())


def test_the_tasks_of_a_group_that_is_a_body_fail_as_the_header_did() -> None:
    SEEN.clear()
    result = chord([add.si(1, 2), fail_for_good.si()], group(echo.si(1).on_error(sees.s()), echo.s())).delay()
    run_due_jobs()
    assert [type(part.result) for part in result.results] == [Permanent, Permanent]
    assert SEEN == ["the mailbox does not exist"]
