"""The tables of cron, beside those of django-celery-beat: what an operator wishes, what is decided, and the ticks."""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs.fields import MomentField


class CatchUp(models.Model):
    """What becomes of the ticks that a schedule has missed, and of those that come while a job of an earlier one lives.
    A schedule without a row has the defaults."""

    class Policy(models.TextChoices):
        """Which of the missed ticks run."""

        SKIP = "skip", "Skip: none of them runs"
        ONCE = "once", "Once: the last one runs"
        ALL = "all", "All: each of them runs"

    periodic_task = models.OneToOneField(
        PeriodicTask, on_delete=models.CASCADE, primary_key=True, related_name="catch_up"
    )
    policy = models.CharField("missed ticks", max_length=4, choices=Policy.choices, default=Policy.ONCE)
    within_minutes = models.PositiveIntegerField(
        "not later than",
        default=360,
        validators=[MinValueValidator(1), MaxValueValidator(366 * 24 * 60)],
        help_text="Minutes. A tick that was missed longer ago is skipped.",
    )
    most_count = models.PositiveIntegerField(
        "at most",
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="With “All”: no more than so many, the last ones.",
    )

    dedup_key = models.CharField(
        "one at a time",
        max_length=255,
        default="",
        blank=True,
        help_text="A key. A tick is skipped while a job with this key, of any call, has not ended.",
    )

    class Meta:
        verbose_name = "catching up"
        verbose_name_plural = "catching up"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(policy__in=["skip", "once", "all"], within_minutes__gte=1),
                name="catchup_policy_is_known",
            ),
            # All of them are written in one transaction.
            models.CheckConstraint(condition=models.Q(most_count__range=(1, 1000)), name="catchup_most_1_to_1000"),
        ]

    def __str__(self) -> str:
        return self.get_policy_display()


class ScheduleState(models.Model):
    """How far a schedule is decided. Triggers on django-celery-beat's tables make and remove it, and note every change.

    So a change by whatever way (form, `update()`, bulk, SQL, while no beat runs) is known with its moment.
    """

    periodic_task = models.OneToOneField(
        PeriodicTask, on_delete=models.CASCADE, primary_key=True, related_name="ledger_state"
    )
    definition = models.JSONField(null=True, help_text="When it ticks, as the triggers saw it last")
    since_at = MomentField(db_default=Now(), help_text="Ticks so since this moment; no earlier tick counts")
    decided_until = MomentField(null=True, help_text="The last tick that is decided, and with it all before")
    error = models.TextField(default="", help_text="Why it cannot tick, or its job cannot be made")
    error_at = MomentField(null=True)

    def __str__(self) -> str:
        return f"state of {self.periodic_task_id}"


class Tick(models.Model):
    """One moment of one schedule, and what was decided about it, in the transaction that wrote its job."""

    class Outcome(models.TextChoices):
        """What became of it."""

        ENQUEUED = "enqueued"
        SKIPPED = "skipped"

    schedule = models.ForeignKey(PeriodicTask, on_delete=models.CASCADE, related_name="ticks", db_index=False)
    scheduled_for = MomentField()
    outcome = models.CharField(max_length=8, choices=Outcome.choices)
    job_id = models.UUIDField(null=True)
    note = models.CharField(max_length=200, default="", help_text="Why it was skipped, or how late it was")
    decided_at = MomentField(db_default=Now())

    class Meta:
        constraints = [
            # G09. In the order in which it is read: the index of the constraint is the only one.
            models.UniqueConstraint(fields=["schedule", "scheduled_for"], name="tick_one_per_schedule_and_moment"),
            models.CheckConstraint(
                condition=models.Q(outcome="enqueued", job_id__isnull=False)
                | models.Q(outcome="skipped", job_id__isnull=True),
                name="tick_has_a_job_iff_enqueued",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.scheduled_for:%Y-%m-%d %H:%M:%S} {self.outcome}"
