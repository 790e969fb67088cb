"""The list of worker processes and their leases."""

from typing import Any

from django.contrib import admin
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from jobs import rendering
from jobs.admin.read_only import ReadOnlyAdmin
from jobs.models import Worker

_STATUS_COLOURS = {"alive": "success", "silent": "warning"}


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Worker processes, the living ones first."""

    list_display = ("node", "status", "queue_names", "slots", "process", "started", "lease")
    ordering = (F("dead_at").desc(nulls_first=True), "node")
    list_per_page = 50
    search_fields = ("node", "host")
    fields = readonly_fields = ("id", "node", "status", "queue_names", "slots", "process", "started", "lease", "ended")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Worker]:
        """Workers, with the database's judgement of their lease."""
        workers: QuerySet[Worker] = super().get_queryset(request)
        return workers.annotate(has_lease=Q(lease_expires_at__gt=Now()))

    @display(description="status")
    def status(self, worker: Any) -> SafeString:
        """Alive; silent since its lease ran out, soon to be given up; ended or given up."""
        living = "alive" if worker.has_lease else "silent"
        return rendering.badge(living if worker.dead_at is None else "ended", _STATUS_COLOURS)

    @display(description="queues")
    def queue_names(self, worker: Worker) -> str:
        """What it consumes."""
        return ", ".join(worker.queues) or "–"

    @display(description="slots")
    def slots(self, worker: Worker) -> str:
        """How many jobs it runs at once, in what kind of pool, and how many of them will not end."""
        slots = f"{worker.concurrency} × {worker.pool}"
        return f"{slots}, {worker.stuck_count} stuck" if worker.stuck_count else slots

    @display(description="process")
    def process(self, worker: Worker) -> str:
        """Where to find it."""
        return f"{worker.pid} on {worker.host}"

    @display(description="started", ordering="started_at")
    def started(self, worker: Worker) -> SafeString | str:
        """When it began."""
        return rendering.recent(worker.started_at)

    @display(description="lease until", ordering="lease_expires_at")
    def lease(self, worker: Worker) -> SafeString | str:
        """Given up after this time, unless it renews the lease."""
        return rendering.recent(worker.lease_expires_at)

    @display(description="ended", ordering="dead_at")
    def ended(self, worker: Worker) -> SafeString | str:
        """When it ended or was given up."""
        return rendering.moment(worker.dead_at)
