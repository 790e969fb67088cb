"""Actions on all jobs that match a filter: what matches, what is asked, what is done, and what is left alone."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.timezone import get_fixed_timezone

from accounts.models import User
from jobs import batches, bulk_actions, services, settle
from jobs.job_filter import JobFilter, preview
from jobs.models import Attempt, AuditEntry, BulkAction, Job, QueueControl
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.connections import another_connection
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.soak import odd_tasks, poison

pytestmark = pytest.mark.django_db

RETRY, CANCEL, PROMOTE, EDIT = (BulkAction.Kind[name] for name in ("RETRY", "CANCEL", "PROMOTE", "EDIT"))
NOW = timezone.now()
HOUR = timedelta(hours=1)
ADD = sample_tasks.add.name


@pytest.fixture
def operator() -> User:
    return User.objects.create_user("operator@example.com", name="Operator", is_staff=True)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH", 3)


def carry_out(action: BulkAction) -> BulkAction:
    """All batches, as the action's job does them."""
    while action.finished_at is None:
        action = batches.do_one(action.pk)
    return action


def past(**fields: Any) -> Job:
    """A job from before the request, whatever the clocks' resolution."""
    return make_job(**{"created_at": NOW - HOUR, "run_at": NOW - HOUR, **fields})


def again(*jobs: Job) -> list[Job]:
    """The jobs as they are now."""
    return [Job.objects.get(pk=job.pk) for job in jobs]


def matched(kind: BulkAction.Kind, **wanted: Any) -> set[UUID]:
    found = preview(kind, JobFilter(**wanted))
    assert found.count == len(found.sample)
    return {job.pk for job in found.sample}


# -- The filter --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ({"state": "failed"}, {"state": "failed"}),
        ({"queues": ("email", "crm")}, {"queue": "crm"}),
        ({"task": "a.tasks.mail"}, {"task": "a.tasks.mail"}),
        ({"created_from": NOW}, {"created_at": NOW}),
        ({"created_until": NOW - 2 * HOUR}, {"created_at": NOW - 3 * HOUR}),
        ({"ended_from": NOW}, {"finished_at": NOW}),
        ({"ended_until": NOW - 2 * HOUR}, {"finished_at": NOW - 3 * HOUR}),
        ({"error": "TIME-OUT of 5%"}, {"error": "SMTP: time-out of 5% of the hosts"}),
    ],
)
def test_each_part_of_a_filter_narrows_it(wanted: dict[str, Any], fields: dict[str, Any]) -> None:
    other = past(state="completed", finished_at=NOW - HOUR)
    job = past(**{"state": "cancelled", "finished_at": NOW - HOUR, **fields})
    assert matched(RETRY, **wanted) == {job.pk}
    assert matched(RETRY) == {job.pk, other.pk}
    assert JobFilter.from_json(JobFilter(**wanted).as_json()) == JobFilter(**wanted)


def test_only_jobs_to_which_it_can_be_done_match() -> None:
    worker = make_worker()
    jobs = {state: past(state=state) for state in ("completed", "failed", "cancelled", "waiting", "delayed")}
    jobs["active"] = past(state="active", worker_id=worker.pk, claim_token="x")
    jobs["held"] = past(state="delayed", is_held=True)
    ids = {name: job.pk for name, job in jobs.items()}
    assert matched(RETRY) == {ids["completed"], ids["failed"], ids["cancelled"]}
    assert matched(CANCEL) == {ids["waiting"], ids["delayed"], ids["active"], ids["held"]}
    assert matched(PROMOTE) == {ids["delayed"]}
    assert matched(PROMOTE, state="failed") == set()


def test_a_filter_says_itself_in_words() -> None:
    at = datetime(2026, 3, 1, 8, tzinfo=NOW.tzinfo)
    wanted = JobFilter(state="failed", queues=("email", "crm"), task="a.b", created_from=at, error="no route")
    assert wanted.in_words() == (
        "failed, in queue email or crm, of a.b, created from 2026-03-01 08:00:00 UTC, error holds 'no route'"
    )
    assert JobFilter().in_words() == "all jobs"
    first = datetime(1, 1, 1, tzinfo=get_fixed_timezone(14 * 60))
    assert JobFilter(created_from=first).in_words().startswith("created from 0001-01-01 00:00:00+")


# -- The dry run -------------------------------------------------------------------------------------------------------
def test_a_dry_run_counts_shows_the_newest_and_changes_nothing() -> None:
    jobs = [past(state="failed", created_at=NOW - number * HOUR) for number in range(15)]
    found = preview(RETRY, JobFilter(state="failed"))
    assert found.count == 15
    assert [job.pk for job in found.sample] == [job.pk for job in jobs[:10]]
    assert {state_of(job.pk) for job in jobs} == {"failed"}
    assert not AuditEntry.objects.exists()
    assert not BulkAction.objects.exists()


# -- Asking ------------------------------------------------------------------------------------------------------------
def test_an_action_its_record_and_its_job_come_together(operator: User) -> None:
    past(state="failed", queue="email")
    wanted = JobFilter(state="failed", queues=("email",))
    action = bulk_actions.request(kind=RETRY, wanted=wanted, actor=operator)
    job = Job.objects.get(task="jobs.tasks.act_on_many")
    assert (job.pk, job.args, job.queue, job.priority) == (action.job_id, [action.pk], "default", 0)
    entry = AuditEntry.objects.get()
    assert (entry.actor_name, entry.what) == (operator.email, "Run again: 1 job (failed, in queue email).")
    assert entry.details == {"filter": {"state": "failed", "queues": ["email"]}}


@pytest.mark.parametrize("kind", [RETRY, CANCEL, PROMOTE])
def test_an_empty_filter_must_be_meant(operator: User, kind: BulkAction.Kind) -> None:
    for state in ("failed", "waiting", "delayed"):
        past(state=state)
    with pytest.raises(services.ActionRefused, match="say that you mean it"):
        bulk_actions.request(kind=kind, wanted=JobFilter(), actor=operator)
    assert not Job.objects.filter(task="jobs.tasks.act_on_many").exists()
    assert bulk_actions.request(kind=kind, wanted=JobFilter(), actor=operator, all_jobs=True).target_count > 0


def test_a_filter_that_matches_nothing_is_refused(operator: User) -> None:
    with pytest.raises(services.ActionRefused, match="No job matches: in queue crm"):
        bulk_actions.request(kind=CANCEL, wanted=JobFilter(queues=("crm",)), actor=operator)
    assert not BulkAction.objects.exists()


@pytest.mark.parametrize(
    "halt",
    [
        {"paused_at": Now()},
        {"rate_limited_until": Now() + timedelta(hours=1)},
        {"quiet_hours": f"{NOW - timedelta(hours=1):%H:%M}-{NOW + timedelta(hours=3):%H:%M} UTC"},
    ],
    ids=["paused", "told to wait", "quiet"],
)
def test_the_job_of_an_action_does_not_wait_in_a_queue_where_nothing_starts(
    operator: User, halt: dict[str, Any]
) -> None:
    past()
    QueueControl.objects.create(name="default", **halt)
    action = bulk_actions.request(kind=CANCEL, wanted=JobFilter(queues=("default",)), actor=operator)
    assert Job.objects.get(pk=action.job_id).queue == "email"


# -- Carrying out ------------------------------------------------------------------------------------------------------
def test_many_jobs_run_again_each_recorded_as_part_of_the_action(operator: User, small_batches: None) -> None:
    jobs = [past(state="failed", attempt=3) for _ in range(8)]
    other = past(state="completed")
    action = carry_out(bulk_actions.request(kind=RETRY, wanted=JobFilter(state="failed"), actor="ada@web-1"))
    assert (action.done_count, action.refused_count) == (8, 0)
    assert {(state_of(job.pk), Job.objects.get(pk=job.pk).attempt) for job in jobs} == {("waiting", 1)}
    assert state_of(other.pk) == "completed"
    entries = AuditEntry.objects.filter(bulk_action=action, thing_type="job")
    assert set(entries.values_list("thing_id", "actor_name")) == {(str(job.pk), "ada@web-1") for job in jobs}


def test_the_action_runs_as_a_job_that_tells_its_progress_and_its_result(operator: User, small_batches: None) -> None:
    jobs = [past(task=sample_tasks.add.name, args=[1, 2], state="delayed", run_at=NOW + HOUR) for _ in range(4)]
    action = bulk_actions.request(kind=PROMOTE, wanted=JobFilter(), actor=operator, all_jobs=True)
    ran = run_due_jobs()
    assert (ran[0].pk, ran[0].state, ran[0].progress_message) == (action.job_id, "completed", "3 of 4 jobs")
    assert ran[0].result == {"done": 4, "refused": 0, "refusals": []}
    assert {(job.pk, job.state) for job in ran[1:]} == {(job.pk, "completed") for job in jobs}


def test_many_jobs_are_edited_whether_they_have_ended_or_wait(operator: User, small_batches: None) -> None:
    ended = [past(task=ADD, args=[1], kwargs={"y": 2}, state="failed", finished_at=NOW - HOUR) for _ in range(4)]
    waiting = past(task=ADD, args=[], kwargs={"x": 1, "y": 2})
    delayed = past(task=ADD, args=[1, 2], state="delayed", run_at=NOW + HOUR)
    elsewhere = past(task=ADD, args=[1, 2], queue="crm")
    worker = make_worker()
    active = past(task=ADD, args=[1, 2], state="active", worker_id=worker.pk, claim_token="x")
    wanted = JobFilter(task=ADD, queues=("default",))
    action = bulk_actions.request(kind=EDIT, wanted=wanted, actor=operator, changes={"x": 10})
    assert (action.target_count, carry_out(action).done_count) == (6, 6)
    # An argument that was given by its place stays there.
    assert {(job.state, str(job.args), str(job.kwargs)) for job in again(*ended)} == {("waiting", "[10]", "{'y': 2}")}
    assert [(job.state, job.args, job.kwargs) for job in again(waiting, delayed)] == [
        ("waiting", [], {"x": 10, "y": 2}),
        ("delayed", [10, 2], {}),
    ]
    assert [job.args for job in again(elsewhere, active)] == [[1, 2], [1, 2]]
    entry = AuditEntry.objects.get(thing_id=str(ended[0].pk))
    assert entry.what == "Edited and run again (was failed)."
    assert (entry.details["before"]["args"], entry.details["after"]["args"]) == ([1], [10])


def test_an_edit_that_does_not_fit_a_job_is_refused_for_that_job_alone(operator: User) -> None:
    fine = past(task=ADD, args=[1, 2], state="failed", finished_at=NOW - HOUR)
    other = past(task=sample_tasks.echo.name, args=[1], state="failed", finished_at=NOW - HOUR)
    action = carry_out(
        bulk_actions.request(kind=EDIT, wanted=JobFilter(state="failed"), actor=operator, changes={"x": 10})
    )
    assert (action.done_count, action.refused_count) == (1, 1)
    assert f"Job {other.pk} was not changed" in action.refusals[0]
    assert [job.state for job in again(fine, other)] == ["waiting", "failed"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("edit", None), ("edit", {}), ("cancel", {"x": 1}), ("edit", {"x": "\0"}), ("edit", {"x": {1, 2}.__iter__()})],
    ids=["none", "empty", "of another kind", "a NUL character", "no JSON"],
)
def test_an_edit_needs_arguments_that_can_be_kept_and_nothing_else_has_any(
    operator: User, kind: str, changes: dict[str, Any] | None
) -> None:
    past()
    with pytest.raises(services.ActionRefused, match="arguments"):
        bulk_actions.request(kind=kind, wanted=JobFilter(state="waiting"), actor=operator, changes=changes)
    assert not BulkAction.objects.exists()


def test_secrets_that_an_edit_sets_are_shown_nowhere(operator: User) -> None:
    past(task=sample_tasks.echo.name, args=[1], state="failed", finished_at=NOW - HOUR)
    changes = {"value": {"token": "hidden-one"}}
    action = carry_out(
        bulk_actions.request(kind=EDIT, wanted=JobFilter(state="failed"), actor=operator, changes=changes)
    )
    assert action.done_count == 1
    assert "hidden-one" not in str(list(AuditEntry.objects.values_list("what", "details")))


def test_refusals_are_counted_and_told_and_the_others_go_on(operator: User, small_batches: None) -> None:
    holder = make_job(dedup_key="one")
    refused = [past(state="failed", dedup_key="one") for _ in range(2)]
    fine = [past(state="failed") for _ in range(3)]
    action = carry_out(bulk_actions.request(kind=RETRY, wanted=JobFilter(state="failed"), actor=operator))
    assert (action.done_count, action.refused_count) == (3, 2)
    assert all(str(holder.pk) in sentence for sentence in action.refusals)
    assert {state_of(job.pk) for job in refused} == {"failed"}
    assert {state_of(job.pk) for job in fine} == {"waiting"}


@pytest.mark.parametrize("kind", [CANCEL, PROMOTE, RETRY])
def test_a_job_that_postgresql_lets_nobody_change_is_refused_and_holds_nobody_up(
    operator: User, kind: BulkAction.Kind
) -> None:
    poison.install()
    state = "cancelled" if kind == RETRY else "delayed"
    fine = [past(state=state) for _ in range(3)]
    odd = past(state=state, task=odd_tasks.stubborn.name)
    action = carry_out(bulk_actions.request(kind=kind, wanted=JobFilter(), actor=operator, all_jobs=True))
    assert (action.done_count, action.refused_count) == (3, 1)
    assert f"Job {odd.pk}: " in action.refusals[0]
    assert "this row is stubborn" in action.refusals[0]
    assert {job.state for job in again(*fine)} == {"cancelled" if kind == CANCEL else "waiting"}
    assert state_of(odd.pk) == state


@pytest.mark.django_db(transaction=True)
def test_a_job_that_somebody_has_locked_is_refused_and_holds_nobody_up(operator: User) -> None:
    locked, free = past(), past()
    action = bulk_actions.request(kind=CANCEL, wanted=JobFilter(queues=("default",)), actor=operator)
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [locked.pk])
        action = carry_out(action)
    assert (action.done_count, action.refused_count) == (1, 1)
    assert "is locked at the moment" in action.refusals[0]
    assert (state_of(locked.pk), state_of(free.pk)) == ("waiting", "cancelled")


def test_each_job_is_acted_on_once_though_it_matches_again(operator: User, small_batches: None) -> None:
    jobs = [past(state="failed") for _ in range(5)]
    action = bulk_actions.request(kind=RETRY, wanted=JobFilter(state="failed"), actor=operator)
    batches.do_one(action.pk)
    again = Job.objects.filter(state="waiting", pk__in=[job.pk for job in jobs])
    assert again.update(state="failed", finished_at=NOW - HOUR, error="and once more") == 3
    assert carry_out(action).done_count == 5
    assert Job.objects.filter(state="failed").count() == 3
    # Run again by an operator, the action's job finds nothing left to do.
    assert batches.do_one(action.pk).done_count == 5


@pytest.mark.parametrize("kind", [RETRY, CANCEL, PROMOTE])
def test_the_job_of_an_action_never_acts_on_itself(operator: User, kind: BulkAction.Kind) -> None:
    past(state="failed")
    past(state="delayed")
    action = bulk_actions.request(kind=kind, wanted=JobFilter(), actor=operator, all_jobs=True)
    before = Job.objects.filter(pk=action.job_id).values().get()
    carry_out(action)
    assert Job.objects.filter(pk=action.job_id).values().get() == before


def fails(job: Job) -> None:
    settle.fail(claim_job(job, make_worker()), error="SMTP time-out")


def is_retried(job: Job) -> None:
    settle.retry(claim_job(job, make_worker()), delay=600, error="SMTP time-out")


def starts(job: Job) -> None:
    claim_job(job, make_worker())


def stalls(job: Job) -> None:
    claim_job(job, make_worker())
    settle.lose(Job.objects.filter(pk=job.pk), evidence="its worker died")


def comes_due(job: Job) -> None:
    services.promote_job(job_id=job.pk, actor="somebody else")


@pytest.mark.parametrize(
    ("kind", "wanted", "state", "happens"),
    [
        (RETRY, {"state": "failed"}, "waiting", fails),
        (RETRY, {}, "waiting", fails),
        (CANCEL, {"state": "active"}, "waiting", starts),
        (CANCEL, {"state": "waiting"}, "delayed", comes_due),
        (CANCEL, {"state": "delayed"}, "waiting", is_retried),
        (CANCEL, {"error": "time-out"}, "waiting", is_retried),
        (PROMOTE, {}, "waiting", is_retried),
    ],
)
def test_a_job_that_comes_to_match_later_is_left_alone(
    operator: User, kind: BulkAction.Kind, wanted: dict[str, Any], state: str, happens: Callable[[Job], None]
) -> None:
    job = past(state=state)
    fields: dict[str, Any] = {"error": "SMTP time-out", **wanted}
    fields.setdefault("state", {RETRY: "failed", CANCEL: "waiting", PROMOTE: "delayed"}[kind])
    if fields["state"] == "active":
        fields.update(worker_id=make_worker().pk, claim_token="x", started_at=NOW - HOUR)
    target = past(**{**fields, "finished_at": NOW - HOUR if fields["state"] == "failed" else None})
    action = bulk_actions.request(kind=kind, wanted=JobFilter(**wanted), actor=operator, all_jobs=True)
    happens(job)
    before = Job.objects.filter(pk=job.pk).values().get()
    assert job.pk in set(JobFilter(**wanted).jobs(kind).values_list("pk", flat=True))
    carry_out(action)
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert AuditEntry.objects.filter(thing_id=str(target.pk), bulk_action=action).exists()


def test_a_job_that_matched_and_has_gone_on_since_is_still_cancelled(operator: User) -> None:
    started, stalled, untouched = past(), past(), past()
    action = bulk_actions.request(kind=CANCEL, wanted=JobFilter(queues=("default",)), actor=operator)
    starts(started)
    stalls(stalled)
    carry_out(action)
    assert {state_of(job.pk) for job in (started, stalled, untouched)} == {"cancelled"}
    assert Attempt.objects.filter(job=started).get().outcome == "cancelled"
