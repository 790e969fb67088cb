"""The page of a periodic task: what is wrong with it, its ticks, and what becomes of those that it misses."""

import pytest
from celery import current_app
from django.contrib.auth.models import Permission
from django.test import Client
from django_celery_beat.models import PeriodicTask

from accounts.models import User
from jobs.cron import ticks
from jobs.models import CatchUp, Job, Tick
from jobs.scheduler import LedgerScheduler
from tests.jobs.cron.schedules import make_schedule, pass_time, plan_of

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/django_celery_beat/periodictask/"


def form_of(schedule: PeriodicTask, **changes: str) -> dict[str, str]:
    """What a browser sends that changes nothing but this."""
    return {
        "name": schedule.name,
        "task": schedule.task,
        "enabled": "on",
        "interval": str(schedule.interval_id),
        "args": schedule.args,
        "kwargs": schedule.kwargs,
        "headers": schedule.headers,
        "catch_up-TOTAL_FORMS": "1",
        "catch_up-INITIAL_FORMS": "0",
        "catch_up-0-policy": "once",
        "catch_up-0-within_minutes": "360",
        "catch_up-0-most_count": "100",
        **changes,
    }


def page(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_broken_schedule_is_seen_in_the_list_and_says_why_on_its_page(admin_client: Client) -> None:
    schedule = make_schedule(kwargs="[]")
    LedgerScheduler(app=current_app).tick()
    assert "broken" in page(admin_client, LIST)
    assert "The keyword arguments must be a JSON object." in page(admin_client, f"{LIST}{schedule.pk}/change/")


def test_the_last_ticks_are_seen_with_their_jobs(admin_client: Client) -> None:
    schedule = make_schedule()
    pass_time(minutes=25)
    ticks.decide(plan_of(schedule))
    text = page(admin_client, f"{LIST}{schedule.pk}/change/")
    assert "missed, and a later one runs" in text
    assert f"/admin/jobs/job/{Job.objects.get().pk}/change/" in text


def test_what_becomes_of_missed_ticks_is_chosen_on_the_page_and_nothing_is_stored_for_the_default(
    admin_client: Client,
) -> None:
    schedule = make_schedule()
    address = f"{LIST}{schedule.pk}/change/"
    assert admin_client.post(address, form_of(schedule)).status_code == 302
    assert not CatchUp.objects.exists()
    assert admin_client.post(address, form_of(schedule, **{"catch_up-0-policy": "all"})).status_code == 302
    wish = CatchUp.objects.get()
    assert (wish.periodic_task, wish.policy, wish.within_minutes, wish.most_count) == (schedule, "all", 360, 100)
    refused = admin_client.post(address, form_of(schedule, **{"catch_up-0-most_count": "1001"}))
    assert "less than or equal to 1000" in refused.content.decode()


def test_a_schedule_and_its_wish_are_made_on_one_page(admin_client: Client) -> None:
    schedule = make_schedule()
    form = form_of(schedule, **{"name": "another", "catch_up-0-policy": "skip"})
    assert admin_client.post(f"{LIST}add/", form).status_code == 302
    another = PeriodicTask.objects.get(name="another")
    assert another.catch_up.policy == "skip"
    assert plan_of(another).row.wishes.policy == "skip"


def test_a_schedule_with_ticks_can_be_deleted(admin_client: Client) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    ticks.decide(plan_of(schedule))
    assert admin_client.post(f"{LIST}{schedule.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Tick.objects.exists()


def test_who_may_only_look_at_periodic_tasks_changes_nothing(client: Client, db: None) -> None:
    schedule = make_schedule()
    viewer = User.objects.create_user("viewer@example.com", name="Vera", is_staff=True)
    may_view = Permission.objects.get(codename="view_periodictask", content_type__app_label="django_celery_beat")
    viewer.user_permissions.add(may_view)
    client.force_login(viewer)
    text = page(client, f"{LIST}{schedule.pk}/change/")
    assert 'name="catch_up-0-policy"' not in text
    assert client.post(f"{LIST}{schedule.pk}/change/", form_of(schedule)).status_code == 403
    for action in ("enable_tasks", "disable_tasks", "toggle_tasks", "run_tasks"):
        client.post(LIST, {"action": action, "_selected_action": [schedule.pk]})
    schedule.refresh_from_db()
    assert schedule.enabled
    assert not Job.objects.exists()


def test_selected_tasks_run_at_once_and_a_broken_one_says_why(admin_client: Client) -> None:
    whole, broken = make_schedule(), make_schedule("broken", args="[1,")
    chosen = {"action": "run_tasks", "_selected_action": [whole.pk, broken.pk]}
    text = admin_client.post(LIST, chosen, follow=True).content.decode()
    assert "broken: The arguments are not JSON" in text
    assert "Enqueued: 1 job." in text
    assert Job.objects.get().task == whole.task
    assert not Tick.objects.exists()
    admin_client.post(LIST, {**chosen, "action": "disable_tasks"})
    assert not PeriodicTask.objects.filter(enabled=True).exists()
    admin_client.post(LIST, {**chosen, "action": "enable_tasks"})
    assert PeriodicTask.objects.filter(enabled=True).count() == 2
