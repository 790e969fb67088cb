"""The schedules of django-celery-beat in the look of the admin; the empty result lists of django-celery-results go."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import pluralize
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_beat.admin import ClockedScheduleAdmin as BaseClockedScheduleAdmin
from django_celery_beat.admin import CrontabScheduleAdmin as BaseCrontabScheduleAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as BasePeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm, TaskSelectWidget
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from django_celery_results.models import GroupResult, TaskResult
from unfold.admin import StackedInline
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from jobs import rendering
from jobs.admin.lists import ListAdmin
from jobs.cron import calls, rows, selectors
from jobs.cron.calls import Overlaps
from jobs.models import CatchUp

_CONDITION_COLOURS = {"ticks": "success", "broken": "danger"}
_TICKS_SHOWN = 10

# Jobs and their results are rows of the ledger: these tables stay empty.
for model in (TaskResult, GroupResult):
    admin.site.unregister(model)
for model in (PeriodicTask, CrontabSchedule, IntervalSchedule, ClockedSchedule, SolarSchedule):
    admin.site.unregister(model)


class TaskSelect(UnfoldAdminSelectWidget, TaskSelectWidget):
    """Chooses among the registered tasks."""


class PeriodicTaskEditForm(PeriodicTaskForm):
    """The form of a periodic task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskSelect()


class CatchUpInline(StackedInline):
    """What becomes of missed and overlapping ticks; whoever may edit the periodic task may say so."""

    model = CatchUp
    verbose_name_plural = "Missed and overlapping ticks"
    hide_title = True
    can_delete = False

    def get_extra(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        """A form for the one row that there may be. Django would show it also to those who may only look."""
        return int(self.has_add_permission(request, obj))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As of the periodic task."""
        return True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As of the periodic task."""
        may: bool = request.user.has_perms(["django_celery_beat.change_periodictask"])
        return may

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As of the periodic task."""
        return self.has_add_permission(request, obj)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(BasePeriodicTaskAdmin, ListAdmin):
    """What beat starts, and when, whether it can, and what became of the last ticks."""

    form = PeriodicTaskEditForm
    inlines = (CatchUpInline,)
    list_display = ("name", "enabled", "scheduler", "last_run", "condition")
    readonly_fields = (*BasePeriodicTaskAdmin.readonly_fields, "condition", "problem", "next_tick", "ticks")

    # The package's own actions are open to all who may look at the list.
    enable_tasks = admin.action(description="Enable", permissions=["change"])(BasePeriodicTaskAdmin.enable_tasks)
    disable_tasks = admin.action(description="Disable", permissions=["change"])(BasePeriodicTaskAdmin.disable_tasks)
    toggle_tasks = admin.action(description="Toggle", permissions=["change"])(BasePeriodicTaskAdmin.toggle_tasks)

    @admin.action(description="Run now, beside the schedule", permissions=["change"])
    def run_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        """Enqueues a job of each that is whole, and says of the others what is wrong with them."""
        enqueued_count = 0
        for row in rows.read_of(queryset):
            try:
                calls.of(row, self.celery_app).send_now()
            except (ValueError, TypeError, LookupError, Overlaps) as error:
                self.message_user(request, f"{row.name}: {error}", messages.ERROR)
            else:
                enqueued_count += 1
        if enqueued_count:
            self.message_user(request, f"Enqueued: {enqueued_count} job{pluralize(enqueued_count)}.", messages.SUCCESS)

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        """With what beat has noted."""
        schedules: QuerySet[PeriodicTask] = super().get_queryset(request)
        return schedules.select_related("ledger_state")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The package's own, and what there is to see of a schedule that exists."""
        fieldsets = super().get_fieldsets(request, obj)
        seen = ("Ticks", {"fields": ("condition", "problem", "next_tick", "ticks")})
        return fieldsets if obj is None else [fieldsets[0], seen, *fieldsets[1:]]

    @display(description="last run", ordering="last_run_at")
    def last_run(self, schedule: PeriodicTask) -> SafeString | str:
        """When a job of it was enqueued last."""
        return rendering.recent(schedule.last_run_at)

    @display(description="condition", ordering="ledger_state__error")
    def condition(self, schedule: PeriodicTask) -> SafeString:
        """Whether it ticks."""
        if not schedule.enabled:
            return rendering.badge("disabled")
        return rendering.badge("broken" if _error(schedule) else "ticks", _CONDITION_COLOURS)

    @display(description="problem")
    def problem(self, schedule: PeriodicTask) -> SafeString | str:
        """Why it cannot tick, as beat has found at its last look."""
        error = _error(schedule) if schedule.enabled else ""
        return format_html('<span class="jobs-error">{}</span>', error) if error else "–"

    @display(description="next tick")
    def next_tick(self, schedule: PeriodicTask) -> SafeString | str:
        """By the database's clock."""
        return rendering.moment(selectors.next_tick(schedule.pk))

    @display(description="last ticks")
    def ticks(self, schedule: PeriodicTask) -> SafeString:
        """What was decided about the last of them."""
        found = selectors.last_ticks(schedule.pk, count=_TICKS_SHOWN)
        return render_to_string("jobs/admin/ticks.html", {"ticks": found})


def _error(schedule: PeriodicTask) -> str:
    state = getattr(schedule, "ledger_state", None)
    return state.error if state else ""


@admin.register(CrontabSchedule)
class CrontabScheduleAdmin(BaseCrontabScheduleAdmin, ListAdmin):
    """Times of day, as in crontab."""


@admin.register(IntervalSchedule)
class IntervalScheduleAdmin(ListAdmin):
    """Every so many seconds, minutes, hours or days."""


@admin.register(ClockedSchedule)
class ClockedScheduleAdmin(BaseClockedScheduleAdmin, ListAdmin):
    """Once, at a moment."""


@admin.register(SolarSchedule)
class SolarScheduleAdmin(ListAdmin):
    """At sunrise, sunset and their kin."""
