"""A flow that has ended, and whose last step PostgreSQL refuses to let go."""

from typing import Any

import pytest
from celery import chord
from django.db import OperationalError, connection
from django.db.models.functions import Now

from jobs import flows
from jobs.dispatcher import flows as dispatcher
from jobs.flows import fan_out
from jobs.models import Flow, Job
from jobs.testing import run_due_jobs
from tests.jobs.factories import state_of
from tests.jobs.test_flows import broken, listed, same, split, total
from tests.sample_tasks import remember_failed_id

pytestmark = pytest.mark.django_db

TOO_MUCH = "total size of jsonb array elements exceeds the maximum of 268435455 bytes"


def refuse(condition: str, errcode: str) -> None:
    """PostgreSQL refuses to write a job's row that looks so."""
    with connection.cursor() as cursor:
        cursor.execute(f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION '{TOO_MUCH}' USING ERRCODE = '{errcode}'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON jobs_job
            FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()
        """)


def allow() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION refuse() CASCADE")


def two_flows_whose_members_have_ended() -> list[Any]:
    unlucky = fan_out(None, [same.s(1)], then=total.s().on_error(remember_failed_id.s()))
    lucky = fan_out(None, [same.s(1)], then=listed.s())
    Job.objects.filter(task=same.name).update(state="completed", finished_at=Now(), result=1)
    return [unlucky, lucky]


RELEASED = f"NEW.task = '{total.name}' AND NEW.state = 'waiting'"


@pytest.mark.parametrize("errcode", ["program_limit_exceeded", "data_exception"])
def test_a_flow_whose_results_cannot_be_kept_fails_and_those_after_it_go_on(errcode: str) -> None:
    refuse(RELEASED, errcode)
    unlucky, lucky = two_flows_whose_members_have_ended()
    dispatcher.run_once()
    job = Job.objects.get(pk=unlucky.id)
    assert (job.state, state_of(lucky.id)) == ("failed", "waiting")
    assert job.error.startswith("The results of the jobs that it waited for could not be handed to it: ")
    assert TOO_MUCH in job.error
    assert Job.objects.filter(task=remember_failed_id.name).count() == 1
    assert not Flow.objects.filter(closed_at=None).exists()


def test_a_flow_that_cannot_be_closed_for_a_moment_is_closed_later_and_those_after_it_go_on() -> None:
    refuse(RELEASED, "lock_not_available")
    unlucky, lucky = two_flows_whose_members_have_ended()
    with pytest.raises(OperationalError):
        dispatcher.run_once()
    assert (state_of(unlucky.id), state_of(lucky.id)) == ("delayed", "waiting")
    allow()
    dispatcher.run_once()
    assert state_of(unlucky.id) == "waiting"


def test_a_member_that_cannot_be_cancelled_does_not_stop_other_cancellations() -> None:
    refuse(f"NEW.task = '{same.name}' AND NEW.state = 'cancelled'", "lock_not_available")
    chord([same.s(1)], listed.s()).delay()
    chord([remember_failed_id.s("a")], listed.s()).delay()
    held = Job.objects.filter(is_held=True)
    held.update(state="cancelled", finished_at=Now())
    with pytest.raises(OperationalError):
        dispatcher.run_once()
    assert set(Job.objects.filter(is_held=False).values_list("task", "state")) == {
        (same.name, "waiting"),
        (remember_failed_id.name, "cancelled"),
    }


def test_the_end_of_a_member_stands_whatever_becomes_of_its_flow() -> None:
    refuse(f"NEW.task = '{total.name}'", "data_exception")
    unlucky, _ = two_flows_whose_members_have_ended()
    flow = Job.objects.get(pk=unlucky.id).awaited_flow_id
    flows.member_ended(flow)
    assert state_of(unlucky.id) == "delayed"


@pytest.mark.parametrize("on_failure", ["ignore", "continue"])
def test_a_policy_for_children_does_not_hide_that_what_follows_them_has_failed(on_failure: str) -> None:
    result = split.delay(2, dict(listed.s() | broken.s()), on_failure=on_failure)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, "out of order" in job.error) == ("failed", True)
    assert not Flow.objects.filter(closed_at=None).exists()
