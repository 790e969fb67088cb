"""The reports that users have asked for."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Now

from jobs.ids import new_id
from jobs.models import LIVE, Job


class State(models.TextChoices):
    """What has become of a report, as its owner sees it."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class ReportQuerySet(models.QuerySet["Report"]):
    """Reads of reports."""

    def with_state(self) -> "ReportQuerySet":
        """Adds `state`, and `error`: why it failed, in words.

        Only that the file is there is stored; whether a report is being made or has failed is what its job says, so
        that a job that ends without its code (its worker died, somebody cancelled it, it is run again) needs nobody who
        tells the report. Pending until the job has ended: whoever sees "ready" may ask for the next one.
        """
        job = Job.objects.filter(pk=OuterRef("job_id"))
        state = Case(
            When(Exists(job.filter(state__in=LIVE)), then=Value(State.PENDING.value)),
            When(ready_at__isnull=False, then=Value(State.READY.value)),
            default=Value(State.FAILED.value),
            output_field=models.CharField(),
        )
        error = Case(
            When(ready_at__isnull=True, then=Subquery(job.values("error")[:1])), output_field=models.TextField()
        )
        return self.annotate(state=state, error=error)


class Report(models.Model):
    """One report on one period for one user. It is ready when its file is there, whole."""

    class Kind(models.TextChoices):
        """What a report is about."""

        ACTIVITY = "activity", "Activity"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="reports")
    kind = models.CharField(max_length=32, choices=Kind.choices)
    from_date = models.DateField(help_text="First day, in the owner's time zone")
    to_date = models.DateField(help_text="Last day, included")
    # Without a foreign key: the report is kept for longer than the job.
    job_id = models.UUIDField(help_text="The job that makes it")
    file = models.FileField(blank=True, max_length=255)
    page_count = models.PositiveIntegerField(null=True, blank=True)
    size_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    ready_at = models.DateTimeField(null=True, blank=True)

    objects = ReportQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job_id"], name="report_one_per_job"),
            models.CheckConstraint(condition=Q(from_date__lte=F("to_date")), name="report_period_in_order"),
            models.CheckConstraint(
                condition=(
                    Q(ready_at__isnull=False, page_count__gte=1, size_bytes__gte=1) & ~Q(file="")
                    | Q(ready_at__isnull=True, page_count__isnull=True, size_bytes__isnull=True, file="")
                ),
                name="report_ready_iff_it_has_a_file",
            ),
        ]
        indexes = [
            models.Index(fields=["owner", "-created_at"], name="report_owner"),
            models.Index(fields=["ready_at"], condition=Q(ready_at__isnull=False), name="report_ready"),
            models.Index(fields=["-created_at"], name="report_created"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.from_date} to {self.to_date}"

    @property
    def file_name(self) -> str:
        """The name under which a person saves it."""
        return f"{self.kind}-{self.from_date}-{self.to_date}.pdf"

    def mark_ready(self, *, file: str, page_count: int, size_bytes: int) -> bool:
        """The file is there. True the first time; when it was lost and made again, the first moment is kept."""
        facts: dict[str, Any] = {"file": file, "page_count": page_count, "size_bytes": size_bytes}
        # Compared and set: of two runs at once, one is the first.
        is_first = Report.objects.filter(pk=self.pk, ready_at__isnull=True).update(ready_at=Now(), **facts) == 1
        if not is_first:
            Report.objects.filter(pk=self.pk).update(**facts)
        self.refresh_from_db()
        return is_first
