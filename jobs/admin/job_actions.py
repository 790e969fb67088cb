"""What an operator can do to jobs from their list and from the page of each: buttons, and actions on selected ones."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods, require_POST
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextareaWidget

from jobs import services
from jobs.admin.payload_field import PayloadField
from jobs.models import Job
from jobs.redaction import redact
from jobs.states import END_STATES, LIVE_STATES, State

_MOST_REFUSALS_SHOWN = 5
# What the buttons of a job's page are posted to, the action, and what the job then was.
_BUTTONS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("run-again", services.retry_job, "run again"),
    ("promote", services.promote_job, "made due now"),
    ("cancel", services.cancel_job, "cancelled"),
)


class ArgumentsForm(forms.Form):
    """The arguments of a job, secrets hidden: a hidden value that is left as it stands stays what it was."""

    args = PayloadField(label="Positional arguments", required=False)
    kwargs = PayloadField(label="Arguments by name", required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            field.widget = UnfoldAdminTextareaWidget(attrs={"rows": 10, "spellcheck": "false"})


class JobActions(ModelAdmin):
    """The operators' part of the job pages. Whoever may change jobs may do all of it."""

    change_form_outer_before_template = "jobs/admin/job_actions.html"
    actions = ("run_again", "promote", "cancel")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may run jobs again, edit, promote and cancel them."""
        return request.user.has_perm("jobs.change_job")

    # -- Selected jobs ---------------------------------------------------------------------------------------------
    @admin.action(description="Run again", permissions=["operate"])
    def run_again(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Runs the selected ended jobs again."""
        self._act(request, _ids(queryset), services.retry_job, "run again")

    @admin.action(description="Run now", permissions=["operate"])
    def promote(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Makes the selected delayed jobs due."""
        self._act(request, _ids(queryset), services.promote_job, "made due now")

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Cancels the selected unfinished jobs."""
        self._act(request, _ids(queryset), services.cancel_job, "cancelled")

    # -- One job ---------------------------------------------------------------------------------------------------
    def get_urls(self) -> list[URLPattern]:
        """The list and the pages, where the buttons of a page are posted to, and the form for its arguments."""
        protected = self.admin_site.admin_view
        own = [
            path(
                f"<uuid:job_id>/{name}/",
                protected(require_POST(partial(self.press, action=action, done=done))),
                name=f"jobs_job_{name}",
            )
            for name, action, done in _BUTTONS
        ]
        edit = require_http_methods(["GET", "POST"])(self.edit_arguments)
        own.append(path("<uuid:job_id>/edit/", protected(edit), name="jobs_job_edit"))
        return own + super().get_urls()

    def press(
        self, request: HttpRequest, job_id: UUID, *, action: Callable[..., None], done: str
    ) -> HttpResponseRedirect:
        """A button of a job's page."""
        self._refuse_others(request)
        self._act(request, [job_id], action, done)
        return _back_to(job_id)

    def edit_arguments(self, request: HttpRequest, job_id: UUID) -> HttpResponse:
        """The form for the arguments of a job, and what it is posted to."""
        self._refuse_others(request)
        job = get_object_or_404(Job, pk=job_id)
        form = ArgumentsForm(
            request.POST if request.method == "POST" else None,
            initial={"args": redact(job.args), "kwargs": redact(job.kwargs)},
        )
        if form.is_valid():
            # A field that was emptied means no arguments.
            args, kwargs = form.cleaned_data["args"] or [], form.cleaned_data["kwargs"] or {}
            actor = cast(AbstractBaseUser, request.user)
            try:
                services.edit_job(job_id=job_id, args=args, kwargs=kwargs, actor=actor)
            except services.ActionRefused as refusal:
                form.add_error(None, str(refusal))
            else:
                self.message_user(request, f"Job {job_id} was given these arguments.", messages.SUCCESS)
                return _back_to(job_id)
        page = {
            **self.admin_site.each_context(request),
            "title": "Edit and run again" if job.state in END_STATES else "Edit arguments",
            "opts": self.opts,
            "job": job,
            "form": form,
            "has_ended": job.state in END_STATES,
        }
        return TemplateResponse(request, "jobs/admin/edit_job.html", page)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Tells the page which buttons this job and this user have."""
        job = kwargs.get("obj")
        if job is not None and self.has_operate_permission(request):
            context["can_run_again"] = job.state in END_STATES
            context["can_promote"] = job.state == State.DELAYED
            context["can_edit"] = job.state != State.ACTIVE
            context["can_cancel"] = job.state in LIVE_STATES
        found: TemplateResponse = super().render_change_form(request, context, *args, **kwargs)
        return found

    # -- Both ------------------------------------------------------------------------------------------------------
    def _refuse_others(self, request: HttpRequest) -> None:
        if not self.has_operate_permission(request):
            raise PermissionDenied

    def _act(self, request: HttpRequest, job_ids: Iterable[UUID], action: Callable[..., None], done: str) -> None:
        """Does it to each job in a transaction of its own, and tells what was done and what was refused."""
        succeeded, refusals = [], []
        for job_id in job_ids:
            try:
                action(job_id=job_id, actor=request.user)
                succeeded.append(str(job_id))
            except services.ActionRefused as refusal:
                refusals.append(str(refusal))
        if len(succeeded) == 1:
            self.message_user(request, f"Job {succeeded[0]} was {done}.", messages.SUCCESS)
        elif succeeded:
            self.message_user(request, f"{len(succeeded)} jobs were {done}.", messages.SUCCESS)
        for sentence in refusals[:_MOST_REFUSALS_SHOWN]:
            self.message_user(request, sentence, messages.WARNING)
        if len(refusals) > _MOST_REFUSALS_SHOWN:
            rest = len(refusals) - _MOST_REFUSALS_SHOWN
            self.message_user(request, f"{rest} more jobs were refused for the same kind of reason.", messages.WARNING)


def _ids(jobs: QuerySet[Job]) -> list[UUID]:
    return list(jobs.values_list("pk", flat=True))


def _back_to(job_id: UUID) -> HttpResponseRedirect:
    return HttpResponseRedirect(reverse("admin:jobs_job_change", args=[job_id]))
