"""The list of jobs and the page of one job; what can be done to them is in `jobs.admin.job_actions`."""

from collections.abc import Sequence
from logging import getLevelName
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.db.models import Case, CharField, F, QuerySet, Value, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from jobs import rendering, selectors, services
from jobs.admin.audit import AuditHistory
from jobs.admin.bulk_actions import JobBulkActions
from jobs.admin.filters import QueueFilter, StateFilter, TaskFilter
from jobs.admin.job_actions import JobActions
from jobs.admin.read_only import ReadOnlyAdmin
from jobs.models import ENDED, LIVE, Attempt, AuditEntry, Job, LogLine, Worker
from jobs.states import State

# What the list never shows and what may be large.
_WIDE_COLUMNS = ("args", "kwargs", "headers", "follow_ups", "custom_meta", "result", "exception", "traceback")
_MOST_LINES_SHOWN = 200
_MOST_ENTRIES_SHOWN = 10
_OUTCOME_COLOURS = {"failed": "danger", "retried": "warning", "stalled": "warning", "cancelled": ""}


class AttemptInline(TabularInline):
    """The runs that did not simply succeed."""

    model = Attempt
    verbose_name_plural = "Runs that did not simply succeed"
    fields = readonly_fields = ("number", "outcome_label", "started", "took", "worker", "what_happened")
    extra = 0
    can_delete = False
    hide_title = True
    ordering = ("id",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever sees the job."""
        return True

    @display(description="outcome")
    def outcome_label(self, attempt: Attempt) -> SafeString:
        """What became of the run."""
        return rendering.badge(attempt.outcome, _OUTCOME_COLOURS)

    @display(description="started")
    def started(self, attempt: Attempt) -> SafeString | str:
        """When the run began."""
        return rendering.recent(attempt.started_at)

    @display(description="took")
    def took(self, attempt: Attempt) -> str:
        """How long it ran."""
        return rendering.between(attempt.started_at, attempt.ended_at)

    @display(description="worker")
    def worker(self, attempt: Attempt) -> SafeString | str:
        """Which process ran it."""
        return _worker_link(attempt.worker_id)

    @display(description="what happened")
    def what_happened(self, attempt: Attempt) -> SafeString | str:
        """The error, and the traceback on demand."""
        if not attempt.traceback:
            return attempt.error or "–"
        return format_html(
            "{}<details><summary>Traceback</summary>{}</details>",
            attempt.error,
            rendering.preformatted(attempt.traceback),
        )


@admin.register(Job)
class JobAdmin(JobActions, JobBulkActions, AuditHistory, ReadOnlyAdmin):
    """Jobs. What operators do to them needs the permission to change jobs; nothing else can be changed."""

    list_display = ("name", "queue", "state_label", "priority", "attempts", "progress", "created_ago", "ended_ago")
    list_filter = (StateFilter, QueueFilter, TaskFilter, ("created_at", admin.DateFieldListFilter))
    list_per_page = 50
    list_disable_select_all = True
    list_filter_sheet = True
    search_fields = ("task", "dedup_key", "error")
    search_help_text = "Job id, task, dedup key or words of the error"
    ordering = ("-created_at",)
    show_full_result_count = False
    # Counting the rows that match costs more than showing a page of them.
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    inlines = (AttemptInline,)
    fieldsets: Any = (
        (None, {"fields": ("id", "task", ("queue", "state_label"), "progress_bar", "error_text", "result_text")}),
        ("At the moment", {"fields": ("why_text",)}),
        ("Traceback", {"fields": ("traceback_text",)}),
        ("Log", {"fields": ("log_text",)}),
        ("Arguments", {"fields": ("args_text", "kwargs_text")}),
        ("Times", {"fields": (("created", "due"), ("started", "ended"), ("waited", "took"), "expires")}),
        (
            "How it runs",
            {
                "fields": (
                    ("attempts", "stalls"),
                    ("priority_text", "time_limits"),
                    ("worker", "owner"),
                    ("rate_key", "rate_limit"),
                    ("concurrency_key", "concurrency_limit"),
                    ("quiet_hours", "dedup_key"),
                    ("correlation_id",),
                    ("parent", "root"),
                    ("flow", "waiter"),
                )
            },
        ),
        ("What operators did", {"fields": ("operators",)}),
    )

    # -- What is read ----------------------------------------------------------------------------------------------
    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """Jobs with the state that people see: a waiting job of a paused queue is paused."""
        is_paused = When(state=State.WAITING.value, queue__in=selectors.paused_queues(), then=Value(rendering.PAUSED))
        jobs = (
            super()
            .get_queryset(request)
            .annotate(seen_state=Case(is_paused, default=F("state"), output_field=CharField()))
        )
        is_list = request.resolver_match is not None and request.resolver_match.url_name == "jobs_job_changelist"
        found: QuerySet[Job] = jobs.defer(*_WIDE_COLUMNS) if is_list else jobs.select_related("owner")
        return found

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Job], search_term: str
    ) -> tuple[QuerySet[Job], bool]:
        """An id finds its job by the primary key; anything else is looked for in the text columns."""
        try:
            return queryset.filter(pk=UUID(search_term.strip())), False
        except ValueError:
            found: tuple[QuerySet[Job], bool] = super().get_search_results(request, queryset, search_term)
            return found

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """All of them."""
        return flatten_fieldsets(self.fieldsets)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """The boxes that say something about this job."""
        silent = set()
        if obj is not None and obj.state in ENDED:
            silent.add("At the moment")
        if obj is not None and not obj.traceback:
            silent.add("Traceback")
        if obj is not None and not obj.log_lines.exists():
            silent.add("Log")
        if obj is not None and not AuditEntry.objects.filter(thing_id=str(obj.pk)).exists():
            silent.add("What operators did")
        return [fieldset for fieldset in self.fieldsets if fieldset[0] not in silent]

    def get_inlines(self, request: HttpRequest, obj: Any = None) -> Sequence[type[AttemptInline]]:
        """The runs that did not succeed, where there are any."""
        return self.inlines if obj is not None and obj.attempts.exists() else ()

    # -- Columns and fields ----------------------------------------------------------------------------------------
    @display(description="job", ordering="task")
    def name(self, job: Job) -> SafeString:
        """The task, and the id below it."""
        breakable = format_html_join(mark_safe(".<wbr>"), "{}", ((part,) for part in job.task.split(".")))
        return format_html('<span class="jobs-name">{}<small>{}</small></span>', breakable, job.pk)

    @display(description="state", ordering="state")
    def state_label(self, job: Any) -> SafeString:
        """The state that people see."""
        return rendering.badge(job.seen_state)

    @display(description="attempt", ordering="attempt")
    def attempts(self, job: Job) -> str:
        """Which run is due, running or was the last one, of how many."""
        return f"{job.attempt} of {job.max_attempts or '∞'}"

    @display(description="progress", ordering="progress_percent")
    def progress(self, job: Job) -> SafeString | str:
        """How far the job is."""
        return rendering.progress(job.progress_percent)

    @display(description="progress")
    def progress_bar(self, job: Job) -> SafeString | str:
        """How far the job is, in its own words."""
        return rendering.progress(job.progress_percent, job.progress_message)

    @display(description="created", ordering="created_at")
    def created_ago(self, job: Job) -> SafeString | str:
        """How long ago it was enqueued."""
        return rendering.recent(job.created_at)

    @display(description="ended", ordering="finished_at")
    def ended_ago(self, job: Job) -> SafeString | str:
        """How long ago it ended."""
        return rendering.recent(job.finished_at)

    @display(description="created")
    def created(self, job: Job) -> SafeString | str:
        """When it was enqueued."""
        return rendering.moment(job.created_at)

    @display(description="ended")
    def ended(self, job: Job) -> SafeString | str:
        """When it completed, failed or was cancelled."""
        return rendering.moment(job.finished_at)

    @display(description="due")
    def due(self, job: Job) -> SafeString | str:
        """Not before this time."""
        return rendering.moment(job.run_at)

    @display(description="last run started")
    def started(self, job: Job) -> SafeString | str:
        """When its last run began."""
        return rendering.moment(job.started_at)

    @display(description="expires")
    def expires(self, job: Job) -> SafeString | str:
        """When it is no longer worth running."""
        return rendering.moment(job.expires_at)

    @display(description="waited")
    def waited(self, job: Job) -> str:
        """From due to started."""
        return rendering.between(job.run_at, job.started_at)

    @display(description="ran for")
    def took(self, job: Job) -> str:
        """The last run's length."""
        return rendering.between(job.started_at, job.finished_at)

    @display(description="lost runs")
    def stalls(self, job: Job) -> str:
        """How many runs were lost with their worker."""
        return str(job.stalled_count)

    @display(description="priority")
    def priority_text(self, job: Job) -> str:
        """Which way the numbers run."""
        return f"{job.priority} (0 to 9, lower runs sooner)"

    @display(description="time limits")
    def time_limits(self, job: Job) -> str:
        """Soft and hard."""
        if job.time_limit_seconds is None:
            return "–"
        soft, hard = job.soft_time_limit_seconds or job.time_limit_seconds, job.time_limit_seconds
        return f"{rendering.duration(soft, units=1)}, stopped after {rendering.duration(hard, units=2)}"

    @display(description="worker")
    def worker(self, job: Job) -> SafeString | str:
        """Which process runs it or ran it last."""
        return _worker_link(job.worker_id)

    @display(description="positional")
    def args_text(self, job: Job) -> SafeString | str:
        """The arguments, secrets hidden."""
        return rendering.payload(job.args) if job.args else "–"

    @display(description="by name")
    def kwargs_text(self, job: Job) -> SafeString | str:
        """The arguments, secrets hidden."""
        return rendering.payload(job.kwargs) if job.kwargs else "–"

    @display(description="why it does not run")
    def why_text(self, job: Job) -> str:
        """Or where it does."""
        return services.why(job.pk) or "–"

    @display(description="result")
    def result_text(self, job: Job) -> SafeString | str:
        """The return value, secrets hidden."""
        return rendering.payload(job.result) if job.result is not None else "–"

    @display(description="error")
    def error_text(self, job: Job) -> SafeString | str:
        """Why the last run failed, in words."""
        return format_html('<strong class="jobs-error">{}</strong>', job.error) if job.error else "–"

    @display(description="traceback")
    def traceback_text(self, job: Job) -> SafeString | str:
        """Where the last run failed."""
        return rendering.preformatted(job.traceback)

    @display(description="last lines")
    def log_text(self, job: Job) -> SafeString | str:
        """What was logged while it ran: the end of it, in the order of time."""
        lines = list(job.log_lines.order_by("-id")[:_MOST_LINES_SHOWN])[::-1]
        return rendering.preformatted("\n".join(map(_as_logged, lines)))

    @display(description="newest first")
    def operators(self, job: Job) -> SafeString:
        """The last actions of operators; the history has all."""
        entries = AuditEntry.objects.filter(thing_id=str(job.pk)).order_by("-id")[:_MOST_ENTRIES_SHOWN]
        lines = ((entry.what, entry.actor_name, rendering.recent(entry.at)) for entry in entries)
        return format_html_join("", "<div>{} {}, {}</div>", lines)

    @display(description="members of its flow")
    def flow(self, job: Job) -> SafeString | str:
        """The jobs whose results it waits for, or has got."""
        if job.awaited_flow_id is None:
            return "–"
        members = Job.objects.filter(flow_id=job.awaited_flow_id)
        ended = members.exclude(state__in=LIVE).count()
        address = f"{reverse('admin:jobs_job_changelist')}?flow_id={job.awaited_flow_id}"
        return format_html('<a class="jobs-link" href="{}">{} of {} have ended</a>', address, ended, members.count())

    @display(description="waited for by")
    def waiter(self, job: Job) -> SafeString | str:
        """The job that waits for this one's result."""
        waiting = Job.objects.filter(awaited_flow_id=job.flow_id).first() if job.flow_id else None
        return _job_link(waiting.pk if waiting else None)

    @display(description="started by job")
    def parent(self, job: Job) -> SafeString | str:
        """The job whose run enqueued this one."""
        return _job_link(job.parent_id)

    @display(description="first job of the chain")
    def root(self, job: Job) -> SafeString | str:
        """Where the chain of jobs began."""
        return _job_link(job.root_id)


def _as_logged(line: LogLine) -> str:
    return f"{line.at:%H:%M:%S} attempt {line.attempt} {getLevelName(line.level)} {line.logger}: {line.message}"


def _job_link(job_id: UUID | None) -> SafeString | str:
    if job_id is None:
        return "–"
    return format_html('<a class="jobs-link" href="{}">{}</a>', reverse("admin:jobs_job_change", args=[job_id]), job_id)


def _worker_link(worker_id: UUID | None) -> SafeString | str:
    if worker_id is None:
        return "–"
    worker = Worker.objects.filter(pk=worker_id).first()
    if worker is None:
        return str(worker_id)
    url = reverse("admin:jobs_worker_change", args=[worker_id])
    return format_html('<a class="jobs-link" href="{}">{}</a> (process {})', url, worker.node, worker.pid)
