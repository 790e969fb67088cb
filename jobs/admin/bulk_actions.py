"""Acting on all jobs that match: from the list by a form and a dry run, then a page that tells how far it is."""

from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from jobs import bulk_actions, rendering, selectors, services
from jobs.admin.audit import AuditHistory
from jobs.admin.payload_field import PayloadField
from jobs.admin.read_only import ReadOnlyAdmin
from jobs.ids import is_id
from jobs.job_filter import APPLICABLE, JobFilter, preview
from jobs.models import BulkAction
from jobs.queues import QUEUES
from jobs.redaction import redact
from jobs.states import State

Kind = BulkAction.Kind
_LABELS = {Kind.RETRY: "Run again", Kind.EDIT: "Edit", Kind.PROMOTE: "Run now", Kind.CANCEL: "Cancel"}
_BUTTONS = {
    Kind.RETRY: "Run {} again",
    Kind.EDIT: "Edit {}",
    Kind.PROMOTE: "Run {} now",
    Kind.CANCEL: "Cancel {}",
}
_CONSEQUENCES = {
    Kind.RETRY: "Each runs again from its first attempt, with the arguments that it has.",
    Kind.EDIT: "Each gets these arguments and keeps its others. Ended ones run again, waiting ones will run with them.",
    Kind.PROMOTE: "Each is due at once. Attempts stay as they are.",
    Kind.CANCEL: "Those that wait never start. Running ones are told, and their processes ended after {seconds:g} s.",
}
_MOMENT = "%Y-%m-%dT%H:%M:%S"
# What may stand in the address of the list for a form to mean the same jobs: its filters, order, page and look.
_SAYABLE = {"state", "queue", "task", "q", "created_at__gte", "created_at__lt", "o", "p", "_facets"}


class _Moment(forms.DateTimeInput):
    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(attrs={"step": "1", "class": "jobs-input"}, format=_MOMENT)


class FilterForm(forms.Form):
    """What is to be done, and to which jobs. What is left empty narrows nothing."""

    kind = forms.ChoiceField(label="Action", choices=list(_LABELS.items()), widget=UnfoldAdminSelectWidget)
    state = forms.ChoiceField(
        choices=[("", "any")] + [(state.value, state.value) for state in State],
        required=False,
        widget=UnfoldAdminSelectWidget,
    )
    queues = forms.MultipleChoiceField(
        choices=[(name, name) for name in QUEUES], required=False, widget=forms.CheckboxSelectMultiple
    )
    task = forms.CharField(required=False, widget=UnfoldAdminTextInputWidget)
    error = forms.CharField(label="Words of the error", required=False, widget=UnfoldAdminTextInputWidget)
    created_from = forms.DateTimeField(label="Created from (UTC)", required=False, widget=_Moment)
    created_until = forms.DateTimeField(label="Created before (UTC)", required=False, widget=_Moment)
    ended_from = forms.DateTimeField(label="Ended from (UTC)", required=False, widget=_Moment)
    ended_until = forms.DateTimeField(label="Ended before (UTC)", required=False, widget=_Moment)
    changes = PayloadField(
        label="To edit: arguments to set, by name", required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3})
    )

    def clean(self) -> dict[str, Any]:
        """Arguments belong to an edit, and are an object."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        changes = cleaned.get("changes")
        if cleaned.get("kind") != Kind.EDIT:
            cleaned["changes"] = None
        elif "changes" in cleaned and (not isinstance(changes, dict) or not changes):
            self.add_error("changes", 'Say which, as in {"user_id": 7}.')
        return cleaned

    def wanted(self) -> JobFilter:
        """The filter that a valid form makes."""
        given = {name: value or None for name, value in self.cleaned_data.items() if name not in ("kind", "changes")}
        if given["queues"] is not None:
            given["queues"] = tuple(given["queues"])
        return JobFilter(**given)


class JobBulkActions(ModelAdmin):
    """The part of the job list that acts on all that match. Whoever may change jobs may do it."""

    list_before_template = "jobs/admin/act_on_all.html"

    def get_urls(self) -> list[URLPattern]:
        """The list and the pages, and the dry run."""
        many = require_http_methods(["GET", "POST"])(self.act_on_many)
        return [path("many/", self.admin_site.admin_view(many), name="jobs_job_many"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, with links to what can be done to all that it shows."""
        links = _links(request.GET) if request.user.has_perm("jobs.change_job") else []
        found: HttpResponse = super().changelist_view(request, {**(extra_context or {}), "act_on_all": links})
        return found

    def act_on_many(self, request: HttpRequest) -> HttpResponse:
        """GET: the form, and what would be done. POST: lets it be done."""
        if not request.user.has_perm("jobs.change_job"):
            raise PermissionDenied
        is_wanted = request.method == "POST"
        data = request.POST if is_wanted else request.GET
        form = FilterForm(data or None)
        page: dict[str, Any] = {"form": form, "title": "Act on all jobs that match", "opts": self.opts}
        if form.is_valid():
            kind, wanted = Kind(form.cleaned_data["kind"]), form.wanted()
            if is_wanted:
                try:
                    action = bulk_actions.request(
                        kind=kind,
                        wanted=wanted,
                        actor=cast(AbstractBaseUser, request.user),
                        all_jobs="all_jobs" in request.POST,
                        changes=form.cleaned_data["changes"],
                    )
                except services.ActionRefused as refusal:
                    self.message_user(request, str(refusal), messages.WARNING)
                else:
                    return HttpResponseRedirect(reverse("admin:jobs_bulkaction_change", args=[action.pk]))
            page.update(_dry_run(kind, wanted), confirmed=FilterForm(data, auto_id="confirmed_%s"))
        return TemplateResponse(
            request, "jobs/admin/act_on_many.html", {**self.admin_site.each_context(request), **page}
        )


@admin.register(BulkAction)
class BulkActionAdmin(AuditHistory, ReadOnlyAdmin):
    """What was asked for all jobs that matched a filter, and how far it is."""

    list_display = ("what", "who", "when", "progress")
    ordering = ("-pk",)
    list_per_page = 50
    fields = readonly_fields = ("what", "who", "when", "progress", "refusals_text", "job", "entries_link")

    @display(description="action")
    def what(self, action: BulkAction) -> str:
        """What was asked for."""
        words = f"{_LABELS[Kind(action.kind)]}: {JobFilter.from_json(action.filter).in_words()}"
        changed = ", ".join(f"{name} = {value!r}" for name, value in redact(action.changes or {}).items())
        return f"{words}; {changed}" if changed else words

    @display(description="who", ordering="actor_name")
    def who(self, action: BulkAction) -> str:
        """A user of the site, or somebody at a terminal."""
        return action.actor_name

    @display(description="when", ordering="pk")
    def when(self, action: BulkAction) -> SafeString | str:
        """How long ago."""
        return rendering.moment(action.requested_at)

    @display(description="progress")
    def progress(self, action: BulkAction) -> str:
        """How many were done and refused, of how many."""
        counts = f"{action.done_count} done, {action.refused_count} refused"
        if action.finished_at is not None:
            return f"{counts}. Finished."
        return f"{counts}, of {action.target_count} that matched"

    @display(description="refused")
    def refusals_text(self, action: BulkAction) -> SafeString | str:
        """Why, for the first of them."""
        return format_html_join("", "<div>{}</div>", ((sentence,) for sentence in action.refusals)) or "–"

    @display(description="carried out by")
    def job(self, action: BulkAction) -> SafeString:
        """The job that does it, and what that is at."""
        url = reverse("admin:jobs_job_change", args=[action.job_id])
        return format_html('<a class="jobs-link" href="{}">{}</a><br>{}', url, action.job_id, _at_the_moment(action))

    @display(description="which jobs")
    def entries_link(self, action: BulkAction) -> SafeString:
        """The record of each job that it was done to."""
        url = f"{reverse('admin:jobs_auditentry_changelist')}?bulk_action__id__exact={action.pk}"
        return format_html('<a class="jobs-link" href="{}">The record of each</a>', url)


def _at_the_moment(action: BulkAction) -> str:
    return services.why(action.job_id) or "It has ended, and retention has removed it."


def _dry_run(kind: BulkAction.Kind, wanted: JobFilter) -> dict[str, Any]:
    found = preview(kind, wanted)
    jobs = "1 job" if found.count == 1 else f"{found.count:,} jobs"
    return {
        "found": found,
        "rest_count": found.count - len(found.sample),
        "in_words": wanted.in_words(),
        "is_for_all": wanted.is_empty,
        "is_dangerous": kind == Kind.CANCEL,
        "jobs": jobs,
        "button": _BUTTONS[kind].format(jobs),
        "consequence": _CONSEQUENCES[kind].format(seconds=settings.JOBS_CANCEL_GRACE_SECONDS),
    }


def _links(shown: QueryDict) -> list[tuple[str, str]]:
    """What can be done to all that a list shows: a label and an address each. Never more jobs than it shows."""
    parameters = _parameters(shown)
    if parameters is None:
        return []
    url, state = reverse("admin:jobs_job_many"), parameters.get("state")
    kinds = [kind for kind in _LABELS if not state or state in APPLICABLE[kind]]
    return [(_LABELS[kind], f"{url}?{urlencode({'kind': kind, **parameters}, doseq=True)}") for kind in kinds]


def _parameters(shown: QueryDict) -> dict[str, Any] | None:
    """The form's parameters for the filters of the list; None where the list is of what no form can say.

    Words that are searched for are looked for in the error alone, so what is found may be less than the list shows.
    """
    searched = shown.get("q", "").strip()
    if is_id(searched) or shown.keys() - _SAYABLE:
        return None
    state, queue = shown.get("state", ""), shown.get("queue", "")
    queues = [queue] if queue else []
    paused = selectors.paused_queues()
    if state == rendering.PAUSED:
        state, queues = State.WAITING.value, [name for name in paused if not queue or name == queue]
    elif state == State.WAITING and paused:
        queues = [name for name in (queues or QUEUES) if name not in paused]
    if not queues and (queue or state != shown.get("state", "")):
        return None
    found = {
        "state": state,
        "queues": queues,
        "task": shown.get("task", ""),
        "error": searched,
        "created_from": _local(shown.get("created_at__gte")),
        "created_until": _local(shown.get("created_at__lt")),
    }
    return {name: value for name, value in found.items() if value}


def _local(text: str | None) -> str:
    """A time of the list's own filter, as the form's field shows it."""
    try:
        return datetime.fromisoformat(text).strftime(_MOMENT) if text else ""
    except ValueError:
        return ""
