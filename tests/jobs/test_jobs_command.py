"""`manage.py jobs`: what it prints, in words and in JSON, and how it exits."""

import json
from io import StringIO
from typing import Any
from uuid import uuid4

import psutil
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import User
from jobs.models import Attempt, AuditEntry, BulkAction, Job, LogLine, QueueControl
from tests import sample_tasks
from tests.jobs.factories import make_events, make_job, state_of
from tests.processes import Processes
from tests.waiting import wait_until

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


NO_UTF_8 = "\udcff"
# Of each subcommand, all that takes a text, a time or a number.
BAD = [
    *(
        [word, *more, option, text]
        for word, more in (
            ("list", ()),
            ("tail", ()),
            ("retry", ()),
            ("cancel", ()),
            ("promote", ()),
            ("purge", ("--yes",)),
        )
        for option in ("--task", "--error", "--queue")
        for text in ("\0", NO_UTF_8)
    ),
    *(
        ["list", option, text]
        for option in ("--created-from", "--created-until", "--ended-from", "--ended-until")
        for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30", "\0", NO_UTF_8, "9" * 5000)
    ),
    *(["list", "--limit", text] for text in (str(10**30), "9" * 5000, "0", "-1", "x")),
    *(["tail", "--for", text] for text in ("nan", "x")),
    *(["stats", "--hours", text] for text in ("nan", "inf", "1e400", "-1", "9" * 5000)),
    *([word, text] for word in ("show", "why", "tail", "pause", "resume") for text in ("\0", NO_UTF_8)),
    *(
        ["edit", "--state", "waiting", "--set", text]
        for text in (
            "x",
            f"x={NO_UTF_8}",
            "x=\0",
            'x="\\ud800"',
            "x=" + "[" * 600 + "]" * 600,
            "x=[NaN]",
            f"{NO_UTF_8}=1",
        )
    ),
    *(["pause", "email", "--actor", text] for text in ("\0", NO_UTF_8)),
]


@pytest.mark.parametrize("words", BAD, ids=lambda words: ascii(" ".join(words))[:80])
def test_what_means_nothing_is_answered_in_words(words: list[str]) -> None:
    make_job(task=sample_tasks.echo.name)
    try:
        printed, status = jobs(*words)
    except CommandError as error:
        printed, status = str(error), error.returncode
    assert status in {1, 2}
    # As a terminal takes it.
    assert printed.encode()
    assert {job.state for job in Job.objects.all()} == {"waiting"}


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


def test_jobs_are_acted_on_by_their_ids() -> None:
    failed, delayed, waiting = make_job(state="failed"), make_job(state="delayed"), make_job()
    assert jobs("retry", failed.pk) == (f"Job {failed.pk} was run again.\n", 0)
    assert jobs("promote", delayed.pk) == (f"Job {delayed.pk} was made due.\n", 0)
    printed, status = jobs("cancel", waiting.pk, "--json", "--actor", "Ada")
    assert (json.loads(printed), status) == ({"job": str(waiting.pk), "done": True}, 0)
    assert {state_of(job.pk) for job in (failed, delayed)} == {"waiting"}
    assert state_of(waiting.pk) == "cancelled"
    assert AuditEntry.objects.order_by("pk").last().actor_name.startswith("Ada (")


def test_refusals_end_the_command_with_1_and_unknown_jobs_with_3() -> None:
    fine, waiting, unknown = make_job(state="failed"), make_job(), uuid4()
    printed, status = jobs("retry", fine.pk, waiting.pk, unknown)
    assert status == 1
    assert [f"{fine.pk} was run again" in printed, f"{waiting.pk} is waiting" in printed] == [True, True]
    assert jobs("retry", unknown)[1] == 3
    assert state_of(fine.pk) == "waiting"


def test_a_dry_run_counts_and_shows_and_changes_nothing() -> None:
    failed = [make_job(state="failed", queue="email", error="SMTP: no route") for _ in range(12)]
    make_job(state="failed", queue="crm", error="SMTP: no route")
    printed, status = jobs("retry", "--queue", "email", "--error", "NO ROUTE", "--dry-run")
    assert status == 0
    assert printed.startswith("12 jobs would be run again: in queue email, error holds 'NO ROUTE'.\n")
    assert str(failed[-1].pk) in printed
    assert printed.endswith("… and 2 more.\n")
    found = json.loads(jobs("retry", "--queue", "email", "--dry-run", "--json")[0])
    assert (found["count"], len(found["sample"]), found["sample"][0]["error"]) == (12, 10, "SMTP: no route")
    assert {state_of(job.pk) for job in failed} == {"failed"}


def test_a_filter_is_handed_to_a_job() -> None:
    make_job(state="failed", queue="email", finished_at="2026-03-01T07:59:59Z")
    make_job(state="failed", queue="crm", finished_at="2026-03-01T08:00:00Z")
    options = ("--state", "failed", "--queue", "email", "--queue", "crm", "--ended-from", "2026-03-01T08:00")
    printed, status = jobs("retry", *options, "--json")
    action = BulkAction.objects.get()
    said = {"requested": True, "bulk_action": action.pk, "job": str(action.job_id), "count": 1}
    assert (json.loads(printed), status) == (said, 0)
    assert action.filter == {
        "state": "failed",
        "queues": ["email", "crm"],
        "ended_from": "2026-03-01T08:00:00+00:00",
    }


def test_every_job_is_meant_only_by_saying_so() -> None:
    make_job()
    for arguments in ((), ("--all", uuid4()), ("--state", "waiting", uuid4())):
        with pytest.raises(CommandError, match="either ids of jobs, or a filter") as raised:
            jobs("cancel", *arguments)
        assert raised.value.returncode == 2
    assert jobs("cancel", "--all")[1] == 0
    printed, status = jobs("cancel", "--queue", "video")
    assert (printed, status) == ("No job matches: in queue video.\n", 1)
    with pytest.raises(CommandError, match="'yesterday' is no time"):
        jobs("cancel", "--created-from", "yesterday")
    for hours in ("0", "-1", "nan", "1e9", "many"):
        with pytest.raises(CommandError, match="expected hours"):
            jobs("stats", "--hours", hours)


def test_times_are_utc_unless_they_say_otherwise(settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    printed, _ = jobs("cancel", "--queue", "video", "--created-from", "2026-03-01T08:00")
    assert printed == "No job matches: in queue video, created from 2026-03-01 08:00:00 UTC.\n"
    printed, _ = jobs("cancel", "--queue", "video", "--created-from", "2026-03-01T08:00+02:00")
    assert printed == "No job matches: in queue video, created from 2026-03-01 06:00:00 UTC.\n"


def test_arguments_are_set_by_name_in_one_job_or_in_many() -> None:
    job = make_job(task=sample_tasks.add.name, args=[1, 2], state="failed")
    assert jobs("edit", job.pk, "--set", "x=5", "--set", "y=null") == (f"Job {job.pk} was edited.\n", 0)
    job.refresh_from_db()
    assert (job.state, job.args) == ("waiting", [5, None])
    printed, status = jobs("edit", job.pk, "--set", "nonsense=1")
    assert ("unexpected keyword argument 'nonsense'" in printed, status) == (True, 1)
    assert jobs("edit", "--state", "waiting", "--dry-run", "--set", "x=text")[0].startswith("1 jobs would be edited")
    assert jobs("edit", "--state", "waiting", "--set", "x=text")[1] == 0
    assert BulkAction.objects.get().changes == {"x": "text"}
    for wrong in ([], ["--set", "x"], ["--set", "1=2"]):
        with pytest.raises(CommandError, match="--set"):
            jobs("edit", job.pk, *wrong)


def test_jobs_are_listed_newest_first_as_the_filter_says() -> None:
    old = make_job(state="failed", queue="email", error="timeout of\nthe server")
    new = make_job(queue="email", progress_percent=40, progress_message="half")
    make_job(queue="crm")
    lines = jobs("list", "--queue", "email")[0].splitlines()
    assert lines[0].split() == ["ID", "STATE", "QUEUE", "PRIO", "ATTEMPT", "AGE", "TASK"]
    assert [line.split()[0] for line in lines[1:]] == [str(new.pk), str(old.pk)]
    assert lines[1].endswith("40 % half")
    assert lines[2].endswith("timeout of the server")
    (line,) = jobs("list", "--queue", "email", "--json", "--limit", "1")[0].splitlines()
    assert json.loads(line)["job"] == str(new.pk)
    assert jobs("list", "--state", "cancelled") == ("No job matches: cancelled.\n", 0)


def test_a_job_is_shown_with_its_secrets_hidden() -> None:
    job = make_job(state="failed", kwargs={"password": "hunter2", "name": "Ada"}, error="broken", traceback="a\nb")
    Attempt.objects.create(job=job, number=1, outcome="failed", error="broken")
    LogLine.objects.create(job=job, attempt=1, at=timezone.now(), level=20, logger="x", message="said")
    printed, status = jobs("show", job.pk)
    assert status == 0
    assert "hunter2" not in printed
    assert '"name": "Ada"' in printed
    assert "It failed at" in printed
    assert "INFO  said" in printed
    shown = json.loads(jobs("show", job.pk, "--json")[0])
    assert (shown["job"], shown["attempts"][0]["outcome"], shown["log"][0]["message"]) == (
        str(job.pk),
        "failed",
        "said",
    )
    assert jobs("show", uuid4())[1] == 3


def test_statistics_are_shown_by_queue_and_by_task() -> None:
    make_job(queue="email")
    QueueControl.objects.create(name="crm", paused_at=timezone.now())
    make_job(queue="crm")
    make_events(3, queue="email", wait_seconds=0.3, run_seconds=1.5)
    by_name = {line.split()[0]: line for line in jobs("stats")[0].splitlines()}
    assert by_name["email"].split()[1:6] == ["1", "0", "0", "3", "0"]
    assert "1 paused" in by_name["crm"]
    facts = [json.loads(line) for line in jobs("stats", "--by", "task", "--json")[0].splitlines()]
    assert [(one["task"], one["completed"]) for one in facts] == [("tests.sample_tasks.add", 3)]


def test_ended_jobs_are_purged_with_a_record_and_what_is_needed_stays() -> None:
    gone, parent = make_job(state="completed", queue="crm"), make_job(state="completed", queue="crm")
    make_job(queue="crm", parent_id=parent.pk)
    other = make_job(state="failed", queue="email")
    assert jobs("purge", "--queue", "crm", "--dry-run")[0].startswith("Would be removed: 1 jobs: in queue crm")
    with pytest.raises(CommandError, match="--yes"):
        jobs("purge", "--queue", "crm")
    assert jobs("purge", "--queue", "crm", "--yes", "--actor", "Ada") == ("Removed: 1 jobs.\n", 0)
    assert {job.pk for job in Job.objects.filter(state__in=["completed", "failed"])} == {parent.pk, other.pk}
    entry = AuditEntry.objects.get()
    assert (entry.what, entry.details) == ("Removed 1 jobs (in queue crm).", {"jobs": [str(gone.pk)]})


@pytest.mark.parametrize("arguments", [(), ("--state", "active")])
def test_a_purge_of_all_must_be_meant_and_of_what_lives_is_refused(arguments: tuple[str, ...]) -> None:
    job = make_job(state="completed")
    with pytest.raises(CommandError, match=r"--all|have not ended"):
        jobs("purge", "--yes", *arguments)
    assert state_of(job.pk) == "completed"


def test_a_purge_that_is_not_confirmed_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(state="completed")
    monkeypatch.setattr("jobs.management.tables.is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert jobs("purge", "--all") == ("Nothing was removed.\n", 1)
    assert state_of(job.pk) == "completed"


@pytest.mark.django_db(transaction=True)
def test_what_becomes_of_jobs_is_told_as_it_happens(processes: Processes) -> None:
    processes.worker("default")
    tail = processes.start("django", "jobs", "tail", "--queue", "default", "--json")
    wait_until(lambda: psutil.Process(tail.pid).status() == "sleeping" and not tail.output)
    seen: dict[str, list[str]] = {}

    def told() -> bool:
        # Enqueued until the command has begun to look.
        result = sample_tasks.add.delay(1, 2)
        for line in tail.output.splitlines():
            one = json.loads(line)
            seen.setdefault(one["job"], [])
            if one["what"] not in seen[one["job"]]:
                seen[one["job"]].append(one["what"])
        return result.id in seen or any(len(events) == 3 for events in seen.values())

    wait_until(told)
    assert ["enqueued", "started", "completed"] in seen.values()
    tail.terminate()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("task", "state", "status"), [("talk", "completed", 0), ("talk_and_fail", "failed", 1)])
def test_one_job_is_followed_with_its_log_until_it_ends(
    processes: Processes, task: str, state: str, status: int
) -> None:
    processes.worker("default")
    result = getattr(sample_tasks, task).delay(*([3] if task == "talk" else []))
    printed, ended = jobs("tail", result.id)
    assert ended == status
    assert f"{state}, attempt 1" in printed
    assert ("line 2 of" if task == "talk" else "nothing") in printed
    assert jobs("tail", uuid4())[1] == 3
