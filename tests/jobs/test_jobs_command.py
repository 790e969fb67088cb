"""`manage.py jobs`: what it prints, in words and in JSON, and how it exits."""

import json
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from accounts.models import User
from jobs.models import AuditEntry, QueueControl
from tests.jobs.factories import make_job

pytestmark = pytest.mark.django_db


def jobs(*arguments: Any) -> tuple[str, int]:
    """What `manage.py jobs …` prints, and its exit status."""
    printed, status = StringIO(), 0
    try:
        call_command("jobs", *(str(argument) for argument in arguments), stdout=printed)
    except SystemExit as end:
        status = int(end.code or 0)
    return printed.getvalue(), status


def test_why_is_said_in_words_or_in_json() -> None:
    job = make_job(queue="nonsense")
    sentence = "Its queue nonsense is not declared in jobs/queues.py, so no worker takes it."
    assert jobs("why", job.pk) == (f"{sentence}\n", 0)
    printed, status = jobs("why", job.pk, "--json")
    assert (json.loads(printed), status) == ({"job": str(job.pk), "why": sentence}, 0)


def test_an_unknown_job_ends_the_command_with_3() -> None:
    unknown = uuid4()
    printed, status = jobs("why", unknown)
    assert (f"There is no job {unknown}" in printed, status) == (True, 3)
    assert json.loads(jobs("why", unknown, "--json")[0]) == {"job": str(unknown), "why": None}


def test_what_is_no_id_is_a_matter_of_usage() -> None:
    with pytest.raises(CommandError, match="invalid job_id value: 'nonsense'"):
        jobs("why", "nonsense")
    with pytest.raises(CommandError, match="SUBCOMMAND"):
        jobs()


def test_queues_are_paused_and_resumed_by_name() -> None:
    assert jobs("pause", "email", "crm")[1] == 0
    assert jobs("pause", "email")[0] == "Queue email was paused already.\n"
    assert QueueControl.objects.filter(paused_at__isnull=False).count() == 2
    printed, status = jobs("resume", "email", "--json")
    assert (json.loads(printed), status) == ({"queue": "email", "changed": True}, 0)
    printed, status = jobs("pause", "emial", "video")
    assert status == 3
    assert printed.startswith("There is no queue 'emial'.")
    assert QueueControl.objects.get(name="video").paused_at is not None


def test_who_acted_is_the_account_or_the_user_or_the_name_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ops")
    monkeypatch.setattr("socket.gethostname", lambda: "web-1")
    user = User.objects.create_user("ada@example.com", name="Ada", is_staff=True)
    jobs("pause", "email")
    jobs("pause", "crm", "--actor", "ada@example.com")
    jobs("pause", "video", "--actor", "Grace")
    actors = AuditEntry.objects.order_by("pk").values_list("actor_id", "actor_name")
    assert list(actors) == [(None, "ops@web-1"), (user.pk, "ada@example.com"), (None, "Grace (ops@web-1)")]
