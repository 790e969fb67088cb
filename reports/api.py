"""Reports over HTTP, for the user who owns them. Who may ask is decided where the router is mounted."""

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from ninja import Router, Schema, Status
from ninja.errors import HttpError
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from jobs.api import POLL_SECONDS, AcceptedOut, accepted
from jobs.ids import InvalidJobId, parse_id
from reports import selectors, services
from reports.downloads import file_of
from reports.models import Report, State

router = Router(tags=["reports"])

_PDF = {"type": "string", "format": "binary"}


def _iso_date(value: object) -> date:
    """A calendar date of RFC 3339; no week dates, no numbers that would be read as seconds since 1970."""
    try:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return date.fromisoformat(value)
    except ValueError:
        pass  # The thirtieth of February is told below, like everything that is no date.
    raise PydanticCustomError("iso_date", "Must be a date like 2026-01-31")


IsoDate = Annotated[date, BeforeValidator(_iso_date)]


class ReportIn(Schema):
    """What to report on: whole days in your time zone, both included, at the most 366, none in the future."""

    kind: Literal["activity"]
    from_date: IsoDate = Field(alias="from")
    to_date: IsoDate = Field(alias="to")


class ReportAcceptedOut(AcceptedOut):
    """The job, and the report that it makes."""

    id: UUID


class ReportOut(Schema):
    """A report. `download` is null until the file is there; `error` says why it failed, and is null otherwise.

    It is pending until its job has ended.
    """

    id: UUID
    kind: str
    from_date: date = Field(alias="from")
    to_date: date = Field(alias="to")
    state: State
    job: UUID
    pages: int | None
    size_bytes: int | None
    created_at: datetime
    ready_at: datetime | None
    download: str | None
    error: str | None


@router.post("", response={202: ReportAcceptedOut})
def create_report(request: HttpRequest, response: HttpResponse, payload: ReportIn) -> Status[dict[str, Any]]:
    """Has a PDF report made in the background; an e-mail follows when it is ready.

    One at a time: asked again while the same report is being made, the answer names that one and its job; 409 while
    another one is being made.
    """
    try:
        report = services.request_report(
            owner=request.auth,  # type: ignore[attr-defined]  # set by ninja
            kind=payload.kind,
            from_date=payload.from_date,
            to_date=payload.to_date,
        )
    except services.AnotherReportIsMade as error:
        raise HttpError(409, str(error)) from error
    accepted(response, report.job_id)
    return Status(202, {"job": report.job_id, "id": report.pk})


@router.get("/{report_id}", response=ReportOut, by_alias=True)
def report(request: HttpRequest, response: HttpResponse, report_id: str) -> dict[str, Any]:
    """A report of yours. `Retry-After` is set until it is ready or has failed.

    404 for an id that is unknown, malformed or somebody else's: the answer does not tell which.
    """
    found = _found(request, report_id)
    if found.state == State.PENDING:
        response["Retry-After"] = str(POLL_SECONDS)
    return {
        "id": found.pk,
        "kind": found.kind,
        "from": found.from_date,
        "to": found.to_date,
        "state": found.state,
        "job": found.job_id,
        "pages": found.page_count,
        "size_bytes": found.size_bytes,
        "created_at": found.created_at,
        "ready_at": found.ready_at,
        "download": f"/api/reports/{found.pk}/download" if found.ready_at else None,
        "error": found.error or None,
    }


@router.get(
    "/{report_id}/download",
    openapi_extra={"responses": {200: {"content": {"application/pdf": {"schema": _PDF}}, "description": "The file"}}},
)
def download(request: HttpRequest, report_id: str) -> FileResponse:
    """The PDF of a report of yours. 409 while it is not ready."""
    found = _found(request, report_id)
    if found.ready_at is None:
        raise HttpError(409, f"The report is not there: it is {found.state}.")
    return file_of(found)


def _found(request: HttpRequest, report_id: str) -> Any:
    try:
        owner: Any = request.auth  # type: ignore[attr-defined]  # set by ninja
        return selectors.report_of(owner_id=owner.pk, report_id=parse_id(report_id))
    except (InvalidJobId, Report.DoesNotExist):
        raise Http404 from None
