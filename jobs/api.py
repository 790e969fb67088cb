"""A job over HTTP, for the user who owns it. Who may ask is decided where the router is mounted."""

from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from ninja import Router, Schema

from jobs.ids import InvalidJobId, parse_id
from jobs.models import LIVE, Job
from jobs.states import State

router = Router(tags=["jobs"])

# How long a client should wait before it asks again (RFC 9110, section 10.2.3).
POLL_SECONDS = 1


class ProgressOut(Schema):
    """How far the job is, as the task reports it."""

    percent: int
    message: str


class JobOut(Schema):
    """A job. `error` says in words why it failed, and is null otherwise."""

    id: UUID
    task: str
    queue: str
    state: State
    progress: ProgressOut
    result: Any
    error: str | None


class AcceptedOut(Schema):
    """The answer to a call that starts work: extend it with the id of what was created."""

    job: UUID


def accepted(response: HttpResponse, job_id: UUID | str) -> None:
    """Sets the headers of a 202: where the job can be watched, and how soon to ask (RFC 9110, section 15.3.3)."""
    response["Location"] = f"/api/jobs/{job_id}"
    response["Retry-After"] = str(POLL_SECONDS)


@router.get("/{job_id}", response=JobOut)
def job(request: HttpRequest, response: HttpResponse, job_id: str) -> dict[str, Any]:
    """State, progress, result and error of a job of yours. `Retry-After` is set until it has ended.

    404 for an id that is unknown, malformed or somebody else's: the answer does not tell which.
    """
    try:
        found = Job.objects.get(pk=parse_id(job_id), owner=request.auth)  # type: ignore[attr-defined]  # set by ninja
    except (InvalidJobId, Job.DoesNotExist):
        raise Http404 from None
    if found.state in LIVE:
        response["Retry-After"] = str(POLL_SECONDS)
    # A task need not report that it is done: its end says so.
    percent = 100 if found.state == State.COMPLETED else found.progress_percent or 0
    return {
        "id": found.pk,
        "task": found.task,
        "queue": found.queue,
        "state": found.state,
        "progress": {"percent": percent, "message": found.progress_message},
        "result": found.result,
        "error": found.error or None,
    }
