"""Flows and Celery's canvas on them: in one process, step by step."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain, chord, group, shared_task
from celery.exceptions import ChordError
from celery.result import AsyncResult
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import services, settle
from jobs.dispatcher import flows as dispatcher
from jobs.dispatcher import retention, statistics
from jobs.flows import fan_out
from jobs.models import Attempt, Flow, Job
from jobs.states import State
from jobs.testing import run_due_jobs
from tests.jobs.factories import claim_job, make_worker
from tests.sample_tasks import add, ignore_result, remember_failed_id

pytestmark = pytest.mark.django_db


@shared_task
def same(value: Any) -> Any:
    return value


@shared_task
def listed(values: list[Any], *more: Any) -> list[Any]:
    return [*values, *more]


@shared_task
def total(values: list[int]) -> int:
    return sum(values)


@shared_task
def broken(*_: Any) -> None:
    raise ValueError("out of order")


@shared_task(bind=True, max_retries=0)
def fails_once(self: Any, value: Any) -> Any:
    if not Attempt.objects.filter(job_id=self.request.id).exists():
        raise ValueError("not yet")
    return value


@shared_task(bind=True)
def adds_another(self: Any, value: int) -> int:
    self.add_to_chord(same.s(10))
    return value


@shared_task(bind=True)
def split(self: Any, count: int, then: Any, wrong: bool = False, on_failure: str = "fail") -> Any:
    children = [same.s(n) for n in range(count)] + ([same.s()] if wrong else [])
    return fan_out(self, children, then=self.app.signature(then), on_failure=on_failure)


@shared_task(bind=True, atomic=True)
def split_atomically(self: Any, count: int, wrong: bool = False) -> Any:
    Group.objects.create(name="effect")
    return fan_out(self, [same.s(n) for n in range(count)] + ([same.s()] if wrong else []), then=listed.s())


@shared_task(bind=True, atomic=True)
def become_atomically(self: Any) -> Any:
    Group.objects.create(name="effect")
    return self.replace(same.s(7))


@shared_task
def quiet() -> str:
    return "quiet"


@shared_task(bind=True)
def become(self: Any, canvas: Any) -> Any:
    return self.replace(self.app.signature(canvas))


def run(canvas: Any) -> Any:
    """Enqueues a canvas, does all of it, and returns its job."""
    return run_flow(canvas.apply_async())


def run_flow(result: Any) -> Job:
    run_due_jobs(at_most=500)
    assert not Flow.objects.filter(closed_at=None).exists()
    return Job.objects.get(pk=result.id)


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (lambda: chord([same.s(1), same.s(2), same.s(3)], listed.s(4)), [1, 2, 3, 4]),
        (lambda: chord([], listed.s(4)), [4]),
        (lambda: chord([same.s(1), same.s(2)], quiet.si()), "quiet"),
        (lambda: group(same.s(1), same.s(2)) | listed.s(), [1, 2]),
        (lambda: same.s(5) | group(add.s(1), add.s(2)) | listed.s(), [6, 7]),
        (lambda: same.s(5) | group(add.s(1), add.s(2)) | total.s() | add.s(100), 113),
        (lambda: chord([same.s(1) | add.s(1) | add.s(1), same.s(0)], listed.s()), [3, 0]),
        (lambda: chord([same.s(0), same.s(1) | add.s(1) | add.s(1)], listed.s()), [0, 3]),
        (lambda: chord([same.s(0), chord([same.s(1), same.s(2)], listed.s()), same.s(3)], listed.s()), [0, [1, 2], 3]),
        (
            lambda: chord([chord([chord([same.s(1)], listed.s()), same.s(2)], listed.s()), same.s(3)], listed.s()),
            [[[1], 2], 3],
        ),
        (lambda: chord([same.s(0), same.s(1) | group(add.s(1), add.s(2)), same.s(9)], listed.s()), [0, [2, 3], 9]),
        (
            lambda: chord([same.s(0), same.s(1) | group(add.s(1), add.s(2)) | listed.s() | listed.s(7)], listed.s()),
            [0, [2, 3, 7]],
        ),
        (lambda: chord([group(same.s(1), same.s(2)), same.s(3)], listed.s()), [1, 2, 3]),
        (lambda: chord([same.s(1), same.s(2)], total.s() | add.s(10) | add.s(100)), 113),
        (lambda: chord([same.s(1), same.s(2)], chord([total.s(), listed.s()], listed.s())), [3, [1, 2]]),
        (lambda: group(same.s(1), same.s(2)) | group(total.s(), listed.s()) | listed.s(), [3, [1, 2]]),
        (lambda: add.chunks([(n, n) for n in range(4)], 3).group() | listed.s(), [[0, 2, 4], [6]]),
        (lambda: add.chunks([(n, n) for n in range(4)], 3) | listed.s(), [[0, 2, 4], [6]]),
        (lambda: chord([same.map([1, 2]), add.starmap([(1, 1), (2, 2)])], listed.s()), [[1, 2], [2, 4]]),
        (lambda: chord([add.chunks([(1, 1), (2, 2), (3, 3)], 2), same.s(0)], listed.s()), [[2, 4], [6], 0]),
        (
            lambda: chord([same.s(0), chord([same.s(1)], group(total.s(), listed.s())), same.s(9)], listed.s()),
            [0, [1, [1]], 9],
        ),
        (
            lambda: chord(
                [same.s(7) | chord([add.s(1)], total.s() | group(add.s(1), add.s(2))), same.s(9)], listed.s()
            ),
            [[9, 10], 9],
        ),
        (
            lambda: chain(
                chord([same.s(1)], group(total.s(), listed.s())), chord([listed.s(2), listed.s(3)], listed.s())
            ),
            [[1, [1], 2], [1, [1], 3]],
        ),
        (lambda: become.s(chord([same.s(1)], group(total.s(), listed.s()))) | listed.s(3), [1, [1], 3]),
        (
            lambda: (
                chain(
                    chord([same.s(1)], chord([total.s()], group(total.s(), listed.s()))),
                    group(listed.s(2), listed.s(3)),
                )
                | listed.s()
            ),
            [[1, [1], 2], [1, [1], 3]],
        ),
        (lambda: become.s(chord([same.s(1)], total.s() | add.s(5))) | add.s(7), 13),
        (lambda: become.s(chord([same.s(1)], total.s() | group(add.s(5), add.s(6)))) | listed.s(7), [6, 7, 7]),
        (lambda: become.s(same.s(0) | chord([add.s(1)], total.s() | add.s(5))) | add.s(7), 13),
        (lambda: become.s(same.s(1) | add.s(1)) | add.s(5), 7),
        (lambda: become.s(chord([same.s(1), same.s(2)], total.s())) | add.s(5), 8),
        (lambda: become.s(group(same.s(1), same.s(2))) | listed.s(3), [1, 2, 3]),
        (lambda: become.s(same.s(1) | group(add.s(1), add.s(2))) | listed.s(9), [2, 3, 9]),
        (lambda: chord([become.s(same.s(1) | add.s(1)), become.s(become.s(group(same.s(4))))], listed.s()), [2, [4]]),
        (
            lambda: chain(chord([same.s(1)], listed.s()), chord([listed.s(2), listed.s(3)], listed.s())),
            [[1, 2], [1, 3]],
        ),
    ],
)
def test_a_canvas_ends_with_its_results_in_order(canvas: Any, expected: Any) -> None:
    job = run(canvas())
    assert (job.state, job.result) == ("completed", expected)
    assert set(Job.objects.values_list("state", flat=True)) == {"completed"}


def test_a_failed_part_fails_the_body_when_all_have_ended() -> None:
    job = run(chord([same.s(1), broken.s(), same.s(3)], listed.s() | add.s(1)))
    body = Job.objects.get(awaited_flow_id__isnull=False)
    assert (body.state, body.started_at) == ("failed", None)
    assert "1 of the 3 jobs that it waited for did not complete" in body.error
    assert "out of order" in body.error
    assert (job.state, job.parent_id) == ("cancelled", body.pk)
    assert Job.objects.filter(state="completed").count() == 2
    assert isinstance(AsyncResult(str(body.pk)).result, ChordError)


def operator() -> Any:
    return get_user_model().objects.create_superuser(email="operator@example.com", password="x" * 12)


def held() -> Job:
    return Job.objects.get(awaited_flow_id__isnull=False)


@pytest.mark.parametrize(("on_failure", "expected"), [("ignore", [1, None, 3]), ("continue", [1, 3])])
def test_a_flow_goes_on_without_what_failed_where_its_policy_says_so(on_failure: str, expected: list[Any]) -> None:
    result = fan_out(None, [same.s(1), broken.s(), same.s(3)], then=listed.s(), on_failure=on_failure)
    run_due_jobs()
    assert Job.objects.get(pk=result.id).result == expected


def test_a_policy_that_does_not_exist_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="hope"):
        fan_out(None, [same.s(1)], then=listed.s(), on_failure="hope")
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    "enqueue",
    [
        lambda: chord([same.s(1), same.s(1, 2, 3)], listed.s()).apply_async(),
        lambda: chord([same.s(1), same.s(object())], listed.s()).apply_async(),
        lambda: chord([same.s(1)], quiet.s()).apply_async(),
        lambda: chord([same.s(1), same.s(2).set(queue="nowhere")], listed.s()).apply_async(),
        lambda: chord([same.s(1), same.s(2).set(dedup_key="one"), same.s(3).set(dedup_key="one")], listed.s())(),
        lambda: fan_out(None, [same.s(1), same.s(1, 2, 3)], then=listed.s()),
        lambda: fan_out(None, [same.s(1), same.s(2).set(dedup_key="one")], then=listed.s()),
        lambda: fan_out(None, [same.s(1), {"task": "gone.task", "args": [], "kwargs": {}}], then=listed.s()),
        lambda: fan_out(None, [same.s(1)], then=quiet.s()),
        lambda: fan_out(None, [same.s(1)], then=listed.s(), no_such_option=1),
    ],
)
def test_a_flow_that_is_wrong_somewhere_is_refused_as_a_whole(enqueue: Any) -> None:
    with pytest.raises((TypeError, ValueError, LookupError)), transaction.atomic():
        enqueue()
    assert not Job.objects.exists()
    assert not Flow.objects.exists()


def test_a_chord_that_goes_on_after_its_body_may_be_a_child() -> None:
    two_steps = chord([same.s(1)], total.s() | add.s(5))
    for _ in range(2):
        assert run_flow(fan_out(None, [two_steps, same.s(2)], then=listed.s(3))).result == [6, 2, 3]


def test_what_follows_a_group_that_is_a_body_gets_the_results_of_the_whole_group() -> None:
    inner = chord([total.s()], group(total.s(), listed.s()))
    chain(chord([same.s(1)], inner), group(listed.s(2), listed.s(3))).delay()
    run_due_jobs()
    last = Job.objects.filter(task=listed.name, args__0=[1, [1]]).order_by("args")
    assert list(last.values_list("result", flat=True)) == [[1, [1], 2], [1, [1], 3]]


def test_a_fan_out_without_children_goes_on_at_once() -> None:
    assert run_flow(fan_out(None, [], then=listed.s(7))).result == [7]


def test_children_may_be_of_any_kind_and_come_from_a_generator() -> None:
    kinds = [same.s(0), same.s(1) | add.s(1), group(same.s(3), same.s(4)), chord([same.s(5)], total.s())]
    assert run_flow(fan_out(None, (kind for kind in kinds), then=listed.s())).result == [0, 2, [3, 4], 5]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (lambda: listed.s(9), [0, 1, 2, 9]),
        (lambda: quiet.si(), "quiet"),
        (lambda: total.s() | add.s(10), 13),
        (lambda: group(total.s(), listed.s()), [3, [0, 1, 2]]),
        (lambda: chord([total.s(), listed.s()], listed.s(8)), [3, [0, 1, 2], 8]),
    ],
)
def test_a_running_job_goes_on_as_what_follows_its_children(then: Any, expected: Any) -> None:
    job = run(split.s(3, dict(then())) | same.s())
    assert (job.state, job.result) == ("completed", expected)


def test_a_running_job_with_wrong_children_fails_and_leaves_none() -> None:
    result = split.delay(3, dict(listed.s()), wrong=True)
    run_due_jobs()
    job = Job.objects.get()
    assert (str(job.pk), job.state) == (result.id, "failed")
    assert "missing 1 required positional argument" in job.error
    assert not Flow.objects.exists()


@pytest.mark.parametrize(("call", "expected"), [(lambda: split_atomically.s(2), [0, 1]), (become_atomically.s, 7)])
def test_what_an_atomic_body_wrote_stands_with_what_it_goes_on_as(call: Any, expected: Any) -> None:
    assert run(call()).result == expected
    assert Group.objects.count() == 1


def test_an_atomic_body_with_wrong_children_leaves_no_effect() -> None:
    job = run(split_atomically.s(2, wrong=True))
    assert (job.state, Group.objects.exists(), Flow.objects.exists()) == ("failed", False, False)


def test_a_fan_out_of_a_task_that_does_not_run_is_refused() -> None:
    with pytest.raises(RuntimeError, match="while it runs in a worker"):
        fan_out(split, [same.s(1)], then=listed.s())


def test_who_waits_for_a_flow_is_delayed_with_the_progress_of_its_members() -> None:
    result = fan_out(None, [same.s(n) for n in range(4)], then=listed.s())
    Job.objects.filter(flow_path=[0]).update(state="completed", finished_at=Now(), result=0)
    Job.objects.filter(flow_path=[1]).update(progress_percent=50)
    dispatcher.report_progress()
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.progress_percent, job.progress_message) == ("delayed", 37, "1 of 4 parts have ended")
    assert run_flow(result).result == [0, 1, 2, 3]


def test_progress_is_counted_only_where_a_member_has_changed() -> None:
    results = [fan_out(None, [same.s(n) for n in range(2)], then=listed.s()) for _ in range(2)]
    progress = dispatcher.Progress()
    fold = statistics.Fold(progress.members_ended)

    def counted() -> int:
        """Questions that count members, at a look that comes after the events."""
        fold.run_once()
        with CaptureQueriesContext(connection) as queries:
            progress.run_once()
        return sum("AVG(" in query["sql"] for query in queries)

    def messages() -> list[str]:
        return [Job.objects.get(pk=result.id).progress_message for result in results]

    # The first look is at all.
    assert (counted(), messages()) == (1, ["0 of 2 parts have ended"] * 2)
    assert counted() == 0
    first = Job.objects.filter(flow_id=Job.objects.get(pk=results[0].id).awaited_flow_id)
    claimed = claim_job(first.filter(flow_path=[0]).get(), make_worker())
    assert counted() == 1
    settle.complete(claimed, result=0)
    assert (counted(), messages()) == (1, ["1 of 2 parts have ended", "0 of 2 parts have ended"])
    assert counted() == 0
    # Another process has led meanwhile.
    progress.forget()
    assert counted() == 1


def test_cancelling_who_waits_cancels_the_members_at_any_depth() -> None:
    result = chord([same.s(1), chord([same.s(2), chord([same.s(3)], listed.s())], listed.s())], listed.s()).delay()
    services.cancel_job(job_id=UUID(result.id), actor=operator())
    for _ in range(6):
        dispatcher.run_once()
    assert set(Job.objects.values_list("state", flat=True)) == {"cancelled"}
    assert not Flow.objects.filter(closed_at=None).exists()
    assert not run_due_jobs()


def test_a_cancelled_member_counts_as_failed() -> None:
    chord([same.s(1), same.s(2)], listed.s()).delay()
    services.cancel_job(job_id=Job.objects.get(flow_path=[1]).pk, actor=operator())
    run_due_jobs()
    assert (held().state, "Cancelled by" in held().error) == ("failed", True)


def test_a_failed_member_that_is_run_again_brings_its_flow_with_it_at_any_depth() -> None:
    inner = chord([same.s(1), fails_once.s("inner")], listed.s())
    result = (chord([same.s(0), inner], listed.s()) | listed.s(9)).apply_async()
    run_due_jobs()
    assert Job.objects.get(pk=result.id).state == "cancelled"
    services.retry_job(job_id=Job.objects.get(task=fails_once.name).pk, actor=operator())
    run_due_jobs()
    assert Job.objects.get(pk=result.id).result == [0, [1, "inner"], 9]


def test_who_failed_with_its_members_runs_again_by_running_them() -> None:
    result = chord([same.s(1), fails_once.s("second"), fails_once.s("third")], listed.s()).delay()
    run_due_jobs()
    assert held().state == "failed"
    services.retry_job(job_id=UUID(result.id), actor=operator())
    run_due_jobs()
    assert (held().state, held().result) == ("completed", [1, "second", "third"])


def test_an_errback_of_the_body_is_called_when_a_part_fails() -> None:
    chord([broken.s()], listed.s().on_error(remember_failed_id.s())).delay()
    run_due_jobs()
    assert Job.objects.get(task=remember_failed_id.name).result == str(held().pk)


def test_the_parts_of_a_chord_may_be_delayed_and_their_results_are_kept_whatever_their_task_says() -> None:
    result = chord([same.s(1), ignore_result.s().set(countdown=60)], listed.s()).delay()
    run_due_jobs()
    assert held().state == "delayed"
    run_due_jobs(ahead=timedelta(minutes=2))
    assert Job.objects.get(pk=result.id).result == [1, 7]


def test_a_running_part_may_add_another() -> None:
    assert run(chord([adds_another.s(1), same.s(5)], total.s())).result == 16


def test_what_running_parts_add_comes_after_the_parts_that_were_there() -> None:
    assert run(chord([adds_another.s(number) for number in range(5)], listed.s())).result == [0, 1, 2, 3, 4, *[10] * 5]


def test_a_step_that_is_not_the_last_of_a_part_cannot_add_one_as_in_celery() -> None:
    job = run(chord([adds_another.s(1) | same.s(), same.s(5)], listed.s()))
    assert (job.state, Job.objects.filter(task=same.name, args=[10]).count()) == ("failed", 0)
    assert "not member of any chord" in Job.objects.get(task=adds_another.name).error


def test_a_result_of_celerys_kind_knows_the_parts() -> None:
    result = chord([same.s(1), same.s(2)], total.s()).delay()
    run_due_jobs()
    assert result.get(timeout=1) == 3
    assert result.parent.join(timeout=1) == [1, 2]


def test_parts_of_an_open_flow_outlive_retention() -> None:
    chord([same.s(1), same.s(2).set(countdown=3600)], listed.s()).delay()
    run_due_jobs()
    ended = Job.objects.filter(state="completed")
    ended.update(finished_at=Now() - timedelta(days=1))
    assert not retention.removable("default", State.COMPLETED, keep_count=0).exists()
    # It never came, nor can it come any more.
    Flow.objects.update(closed_at=Now() - timedelta(days=1))
    held().delete()
    assert retention.removable("default", State.COMPLETED, keep_count=0).count() == 1
    retention.run_once()
    assert Flow.objects.count() == 1
    Job.objects.all().delete()
    retention.run_once()
    assert not Flow.objects.exists()


def test_a_chord_that_is_enqueued_twice_under_its_ids_is_one() -> None:
    part, body, header = (str(uuid4()) for _ in range(3))
    for _ in range(2):
        chord([same.s(1).set(task_id=part)], listed.s().set(task_id=body), task_id=header).apply_async()
    assert str(Flow.objects.get().pk) == header
    run_due_jobs()
    assert held().result == [1]


def test_a_body_with_a_countdown_is_due_so_long_after_its_parts() -> None:
    result = chord([same.s(1), same.s(2)], listed.s().set(countdown=60)).delay()
    run_due_jobs()
    assert (held().state, held().args) == ("delayed", [[1, 2]])
    assert 50 < (held().run_at - timezone.now()).total_seconds() < 61
    run_due_jobs(ahead=timedelta(minutes=2))
    assert Job.objects.get(pk=result.id).result == [1, 2]


@pytest.mark.parametrize(
    ("options", "state"),
    [
        (lambda: {"expires": 60}, "completed"),
        (lambda: {"expires": 60, "countdown": 120}, "cancelled"),
        (lambda: {"expires": timezone.now() + timedelta(seconds=60)}, "cancelled"),
    ],
)
def test_seconds_after_which_a_body_expires_count_from_the_end_of_its_parts(options: Any, state: str) -> None:
    result = chord([same.s(1).set(countdown=3600), same.s(2)], listed.s().set(**options())).delay()
    run_due_jobs(ahead=timedelta(hours=2))
    assert Job.objects.get(pk=result.id).state == state
