"""The ledger's tables. A row of Job is the job; what Redis holds is only a ring that wakes a worker."""

import logging
from dataclasses import replace

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

# Django looks for models in this module; the tables of cron are described where they are used.
from jobs.cron.models import CatchUp as CatchUp
from jobs.cron.models import ScheduleState as ScheduleState
from jobs.cron.models import Tick as Tick
from jobs.fields import KEPT, MappingField, MomentField, payload_field
from jobs.ids import new_id
from jobs.live_counts import LiveCount as LiveCount
from jobs.payloads import PayloadDecoder as PayloadDecoder
from jobs.queues import Queue
from jobs.rates import InvalidLimit
from jobs.states import END_STATES, LIVE_STATES, State

logger = logging.getLogger(__name__)

LIVE = [str(state) for state in LIVE_STATES]
ENDED = [str(state) for state in END_STATES]


class Job(models.Model):
    """One job, from the moment its caller commits until retention removes it.

    State changes go through `jobs.claims` and `jobs.transitions` only, never through `save()`.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    task = models.CharField(max_length=255)
    queue = models.CharField(max_length=64)
    priority = models.SmallIntegerField(default=5, help_text="0 to 9, lower runs sooner")
    args = payload_field(default=list, blank=True)
    kwargs = payload_field(default=dict, blank=True)
    headers = MappingField(**KEPT, default=dict, blank=True, help_text="Custom message headers of the caller")
    follow_ups = MappingField(**KEPT, default=dict, blank=True, help_text="Celery's link, link_error and chain")

    state = models.CharField(max_length=10, choices=[(state.value, state.value) for state in State])
    attempt = models.PositiveIntegerField(default=1, help_text="Number of the run that is due or running, from 1")
    max_attempts = models.PositiveIntegerField(null=True, blank=True, help_text="Runs allowed; empty: without end")
    stalled_count = models.PositiveIntegerField(default=0, help_text="Runs lost with their worker")
    redelivered = models.BooleanField(
        default=False, db_default=False, help_text="Its last run was lost, given back or rejected: it may have begun"
    )
    run_alone = models.BooleanField(default=False, help_text="Never run in a batch with others")
    claim_token = models.CharField(max_length=120, blank=True, default="", help_text="Fences the writes of a run")
    worker_id = models.UUIDField(null=True, blank=True, help_text="The worker process that runs or ran it last")

    run_at = MomentField(db_default=Now(), help_text="Not before this time")
    created_at = MomentField(db_default=Now())
    started_at = MomentField(null=True, blank=True)
    finished_at = MomentField(null=True, blank=True)
    expires_at = MomentField(null=True, blank=True)
    soft_time_limit_seconds = models.FloatField(null=True, blank=True)
    time_limit_seconds = models.FloatField(null=True, blank=True)

    # See `jobs.limits`. Jobs of one queue and lane have the same limits.
    rate_key = models.CharField(max_length=128, null=True, blank=True, help_text="Starts are counted by it")
    rate_limit = models.CharField(max_length=16, null=True, blank=True, help_text="Starts per time, as 10/s")
    concurrency_key = models.CharField(max_length=128, null=True, blank=True, help_text="Running jobs, by it")
    concurrency_limit = models.PositiveIntegerField(null=True, blank=True, help_text="Jobs of the key at once")
    quiet_hours = models.CharField(max_length=64, null=True, blank=True, help_text="When it does not start")
    # In the order of bytes, whatever the database's: the leader walks through lanes in the order of Python.
    lane = models.TextField(
        blank=True, default="", db_default="", db_collation="C", help_text="Its own limits, in one text"
    )

    dedup_key = models.CharField(max_length=255, null=True, blank=True)
    successor = payload_field(
        null=True, blank=True, help_text="The job to insert when this one ends: what came with its key meanwhile"
    )
    progress_percent = models.PositiveSmallIntegerField(null=True, blank=True)
    progress_message = models.CharField(max_length=255, blank=True, default="")
    custom_state = models.CharField(max_length=64, blank=True, default="", help_text="From `update_state`")
    custom_meta = payload_field(null=True, blank=True)

    ignore_result = models.BooleanField(default=False)
    result = payload_field(null=True, blank=True)
    error = models.TextField(blank=True, default="", help_text="Why it failed, in words")
    exception = payload_field(null=True, blank=True, help_text="The exception as Celery stores it")
    traceback = models.TextField(blank=True, default="")

    parent_id = models.UUIDField(null=True, blank=True)
    root_id = models.UUIDField(null=True, blank=True)
    group_id = models.CharField(max_length=64, blank=True, default="")
    # No foreign keys: the ends of many members would all lock the one row of their flow.
    flow_id = models.UUIDField(null=True, blank=True, help_text="The flow that waits for this job")
    flow_path = ArrayField(models.IntegerField(), null=True, blank=True, help_text="Its place among the flow's results")
    awaited_flow_id = models.UUIDField(null=True, blank=True, help_text="The flow that this job waits or waited for")
    is_held = models.BooleanField(default=False, help_text="Its flow has not ended, or not well: it has no results yet")
    correlation_id = models.CharField(max_length=64, blank=True, default="")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs"
    )

    class Meta:
        constraints = [
            # G08: one live job per dedup key, whoever enqueues at the same moment.
            models.UniqueConstraint(
                fields=["dedup_key"],
                condition=Q(state__in=LIVE, dedup_key__isnull=False),
                name="job_one_live_per_dedup_key",
            ),
            # Also holds that the state is one of these.
            models.CheckConstraint(
                condition=Q(state__in=ENDED, finished_at__isnull=False) | Q(state__in=LIVE, finished_at__isnull=True),
                name="job_finished_at_iff_ended",
            ),
            models.CheckConstraint(
                condition=~Q(state="active") | (Q(worker_id__isnull=False) & ~Q(claim_token="")),
                name="job_active_has_owner",
            ),
            models.CheckConstraint(condition=Q(priority__gte=0, priority__lte=9), name="job_priority_0_to_9"),
            models.CheckConstraint(
                condition=Q(progress_percent__isnull=True) | Q(progress_percent__lte=100), name="job_progress_0_to_100"
            ),
            models.CheckConstraint(
                condition=Q(attempt__gte=1) & (Q(max_attempts__isnull=True) | Q(attempt__lte=F("max_attempts"))),
                name="job_attempt_within_max",
            ),
            # A job with limits of its own that stood in the lane of those without would start as if it had none.
            models.CheckConstraint(
                condition=Q(lane="", rate_key=None, concurrency_key=None, quiet_hours=None)
                | (~Q(lane="") & ~Q(rate_key=None, concurrency_key=None, quiet_hours=None)),
                name="job_lane_iff_limited",
            ),
            models.CheckConstraint(condition=Q(rate_limit=None) | ~Q(rate_key=None), name="job_rate_limit_has_key"),
            models.CheckConstraint(
                condition=Q(concurrency_key=None, concurrency_limit=None)
                | Q(concurrency_key__isnull=False, concurrency_limit__isnull=False, concurrency_limit__gte=1),
                name="job_concurrency_key_has_limit",
            ),
        ]
        indexes = [
            # The order of claims, lane by lane; the counts of live jobs use these partial indexes too.
            models.Index(
                fields=["queue", "lane", "priority", "run_at", "id"], condition=Q(state="waiting"), name="job_waiting"
            ),
            models.Index(fields=["is_held", "run_at"], condition=Q(state="delayed"), name="job_delayed"),
            models.Index(fields=["worker_id", "started_at"], condition=Q(state="active"), name="job_active"),
            models.Index(
                fields=["concurrency_key", "started_at"],
                condition=Q(state="active", concurrency_key__isnull=False),
                name="job_active_of_key",
            ),
            models.Index(
                fields=["expires_at"],
                condition=Q(state__in=["waiting", "delayed"], expires_at__isnull=False),
                name="job_expiring",
            ),
            models.Index(fields=["queue", "state", "-finished_at"], condition=Q(state__in=ENDED), name="job_ended"),
            # Retention asks whether a job has children that are still to run.
            models.Index(fields=["parent_id"], condition=Q(parent_id__isnull=False), name="job_children"),
            # Whether a flow is over: one look into an index, however many members it has.
            models.Index(
                fields=["flow_id"], condition=Q(state__in=LIVE, flow_id__isnull=False), name="job_live_members"
            ),
            models.Index(fields=["flow_id"], condition=Q(flow_id__isnull=False), name="job_members"),
            models.Index(
                fields=["awaited_flow_id"], condition=Q(awaited_flow_id__isnull=False), name="job_awaiting_flow"
            ),
            models.Index(fields=["owner", "-created_at"], name="job_owner"),
            models.Index(fields=["-created_at"], name="job_created"),
        ]

    def __str__(self) -> str:
        return f"{self.task}[{self.id}]"


class Flow(models.Model):
    """Jobs that belong together, its members, and those that are held until all of them have ended.

    A member is a job with this `flow_id`; held are those with this `awaited_flow_id`. The members' own rows say how far
    the flow is: nobody counts, so that their ends do not wait for each other.
    """

    class OnFailure(models.TextChoices):
        """What a member that did not complete means for the jobs that are held."""

        FAIL = "fail", "They fail"
        IGNORE = "ignore", "They run, with None in its place"
        CONTINUE = "continue", "They run with the results that there are"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    on_failure = models.CharField(max_length=10, choices=OnFailure.choices, default=OnFailure.FAIL)
    opened_at = MomentField(db_default=Now())
    closed_at = MomentField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["opened_at"], condition=Q(closed_at__isnull=True), name="flow_open"),
            models.Index(fields=["closed_at"], condition=Q(closed_at__isnull=False), name="flow_closed"),
        ]

    def __str__(self) -> str:
        return str(self.pk)


class Attempt(models.Model):
    """A run that did not simply succeed: what became of it, and why."""

    class Outcome(models.TextChoices):
        """How a run ended."""

        RETRIED = "retried"
        FAILED = "failed"
        STALLED = "stalled"
        CANCELLED = "cancelled"

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    worker_id = models.UUIDField(null=True, blank=True)
    claim_token = models.CharField(max_length=120, blank=True, default="", help_text="Names the run")
    started_at = MomentField(null=True, blank=True)
    ended_at = MomentField(db_default=Now())
    error = models.TextField(blank=True, default="")
    traceback = models.TextField(blank=True, default="")

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.job_id}: {self.outcome}"


class LogLine(models.Model):
    """What was logged while a job ran: kept with it, bounded for each run."""

    # No constraint: a line is never in the way of its job, and may come after it.
    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="log_lines", db_constraint=False)
    attempt = models.PositiveIntegerField()
    at = MomentField()
    level = models.PositiveSmallIntegerField(help_text="As Python's logging numbers them")
    logger = models.CharField(max_length=255)
    message = models.TextField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.message


class Worker(models.Model):
    """One worker process and its lease. The id is its incarnation: fresh at each start, never the node name."""

    id = models.UUIDField(primary_key=True, editable=False)
    node = models.CharField(max_length=255, help_text="Celery's node name")
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    pid_space = models.CharField(
        max_length=128, blank=True, default="", help_text="Boot and PID namespace in which the pid means something"
    )
    pid_started_ticks = models.BigIntegerField(null=True, blank=True, help_text="Tells the process from a later one")
    pool = models.CharField(max_length=64)
    concurrency = models.PositiveIntegerField()
    queues = models.JSONField(default=list)
    left_queues = models.JSONField(
        default=list, db_default=[], blank=True, help_text="Those that it took from until somebody told it not to"
    )
    tasks = models.JSONField(default=list, blank=True, help_text="Those that it knows; it claims jobs of no others")
    stuck_count = models.PositiveIntegerField(default=0, help_text="Threads that outlived their job's time limit")
    versions = models.JSONField(default=dict, blank=True, help_text="Of Python and the main packages")
    started_at = MomentField(db_default=Now())
    lease_expires_at = MomentField()
    renewed_at = MomentField(null=True, blank=True, help_text="The last renewal, by the database's clock")
    clock_at = MomentField(null=True, blank=True, help_text="The same moment by the worker's own clock")
    answered_since = MomentField(
        null=True, blank=True, help_text="Since when PostgreSQL has answered each of its renewals"
    )
    looked_at = MomentField(
        null=True, blank=True, help_text="When it last was seen to look for jobs, by the database's clock"
    )
    deaf_since = MomentField(null=True, blank=True, help_text="Since when Redis has not answered it")
    dead_at = MomentField(null=True, blank=True, help_text="Given up, or ended: it owns nothing any more")
    settled_at = MomentField(null=True, blank=True, help_text="Dead for a while, and nothing of it was left")

    class Meta:
        indexes = [
            models.Index(fields=["lease_expires_at"], condition=Q(dead_at__isnull=True), name="worker_live"),
            models.Index(fields=["dead_at"], condition=Q(settled_at__isnull=True), name="worker_unsettled"),
        ]

    def __str__(self) -> str:
        return self.node


class Duty(models.Model):
    """A duty that one process at a time does for all: its holder's lease, and when it last ticked. Of those that the
    dispatcher's leader does, when each last succeeded, and what it last raised."""

    name = models.CharField(primary_key=True, max_length=64)
    holder_id = models.UUIDField(null=True, blank=True)
    term = models.PositiveBigIntegerField(default=0, help_text="Counts the changes of holder")
    lease_expires_at = MomentField(null=True, blank=True)
    ticked_at = MomentField(null=True, blank=True)
    succeeded_at = MomentField(null=True, blank=True)
    failed_at = MomentField(null=True, blank=True)
    error = models.TextField(blank=True, default="", help_text="What it last raised")
    every_seconds = models.FloatField(null=True, blank=True, help_text="How often it is to be done")

    class Meta:
        verbose_name_plural = "duties"

    def __str__(self) -> str:
        return self.name


class QueueControl(models.Model):
    """What an operator has set for a queue, over the declaration in `jobs.queues`, and whether anything may start."""

    OVERRIDES = (
        "rate_limit",
        "concurrency_limit",
        "quiet_hours",
        "waiting_threshold_count",
        "failed_threshold_count",
        "oldest_threshold_seconds",
        "keep_completed_count",
        "keep_failed_count",
    )

    name = models.CharField(primary_key=True, max_length=64)
    paused_at = MomentField(null=True, blank=True)
    rate_limited_until = MomentField(
        null=True, blank=True, help_text="A job has raised RateLimited: nothing starts until then"
    )
    waiting_threshold_count = models.PositiveIntegerField(null=True, blank=True)
    failed_threshold_count = models.PositiveIntegerField(null=True, blank=True)
    oldest_threshold_seconds = models.PositiveIntegerField(null=True, blank=True)
    keep_completed_count = models.PositiveIntegerField(null=True, blank=True)
    keep_failed_count = models.PositiveIntegerField(null=True, blank=True)
    rate_limit = models.CharField(max_length=16, null=True, blank=True)
    concurrency_limit = models.PositiveIntegerField(null=True, blank=True)
    quiet_hours = models.CharField(max_length=64, null=True, blank=True)

    def __str__(self) -> str:
        return self.name

    @property
    def has_limits(self) -> bool:
        """Whether an operator has set a limit, also where that is none."""
        return any(value is not None for value in (self.rate_limit, self.concurrency_limit, self.quiet_hours))

    def over(self, queue: Queue) -> Queue:
        """The declaration with the operator's values over it: what is in force.

        Limits that mean nothing, which no form has let through, are passed over: one row must not stop all queues.
        """
        own = {name: value for name in self.OVERRIDES if (value := getattr(self, name)) is not None}
        try:
            return replace(queue, **own)
        except InvalidLimit as error:
            logger.error(
                "The limits that were set for %s are passed over, the declared ones hold. %s", self.name, error
            )
            limits = ("rate_limit", "concurrency_limit", "quiet_hours")
            return replace(queue, **{name: value for name, value in own.items() if name not in limits})


class Limit(models.Model):
    """What all workers share of one limit. Claims lock it, one after the other, and seldom write it.

    Keys are made by `jobs.limits`: of a queue, of a rate key or of a concurrency key.
    """

    key = models.CharField(primary_key=True, max_length=160)
    kept_count = models.PositiveIntegerField(default=0, db_default=0, help_text="How many starts are kept at most")
    running_since = MomentField(
        null=True, blank=True, help_text="Nothing that runs under the key was started earlier; empty where unknown"
    )
    rate_limited_until = MomentField(
        null=True, blank=True, help_text="A job has raised RateLimited: nothing starts until then"
    )
    used_at = MomentField(db_default=Now())

    def __str__(self) -> str:
        return self.key


class RateStart(models.Model):
    """A start that counts for the rate of a key; numbered, so that the start before so many others is found at once.

    Rows are added and removed, and never written again: beside an old snapshot, each version of a row would be in the
    way of all later claims.
    """

    pk = models.CompositePrimaryKey("key", "number")
    key = models.CharField(max_length=160, help_text="That of the limit")
    number = models.PositiveBigIntegerField()
    started_at = MomentField()

    def __str__(self) -> str:
        return f"{self.key} {self.number}"


class DedupWindow(models.Model):
    """A key that is taken for a time, also beyond the end of its job: throttling."""

    key = models.CharField(primary_key=True, max_length=255)
    job_id = models.UUIDField()
    until = MomentField()

    class Meta:
        indexes = [models.Index(fields=["until"], name="dedupwindow_until")]

    def __str__(self) -> str:
        return self.key


class JobEvent(models.Model):
    """The end of a run, on its way into Stat: a trigger on `jobs_job` writes it in the transaction that ends the run.

    Rows live for a second or two. Appending one costs a run next to nothing, and two runs never wait for each other as
    they would if both counted in one row.
    """

    class Kind(models.TextChoices):
        """What became of the run, or of the job that never ran."""

        COMPLETED = "completed"
        FAILED = "failed"
        RETRIED = "retried"
        STALLED = "stalled"
        CANCELLED = "cancelled"

    queue = models.CharField(max_length=64)
    task = models.CharField(max_length=255)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    at = MomentField(db_default=Now())
    wait_seconds = models.FloatField(null=True, blank=True, help_text="From the moment it was due to its start")
    run_seconds = models.FloatField(null=True, blank=True)
    # No constraint: an event must not lock its owner's row, and may outlive it for a moment.
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    error = models.TextField(blank=True, default="", help_text="Why an owner's job failed: its first 200 characters")
    flow_id = models.UUIDField(null=True, blank=True, help_text="The flow of which the job is a member")

    def __str__(self) -> str:
        return f"{self.task} {self.kind}"


class Stat(models.Model):
    """Counts of one task in one queue in one minute: what every rate, total and percentile reads.

    After two days, the minutes of a UTC day are one row, at the day's beginning (see `jobs.statistics`).
    """

    queue = models.CharField(max_length=64)
    task = models.CharField(max_length=255)
    minute = MomentField(help_text="Its beginning")
    arrived_count = models.PositiveIntegerField(default=0, db_default=0, help_text="Jobs that were made in it")
    completed_count = models.PositiveIntegerField(default=0)
    failed_count = models.PositiveIntegerField(default=0)
    retried_count = models.PositiveIntegerField(default=0)
    stalled_count = models.PositiveIntegerField(default=0)
    cancelled_count = models.PositiveIntegerField(default=0)
    wait_seconds_sum = models.FloatField(default=0)
    run_seconds_sum = models.FloatField(default=0)
    wait_buckets = ArrayField(models.PositiveIntegerField(), help_text="Counts per bound of jobs.statistics")
    run_buckets = ArrayField(models.PositiveIntegerField(), help_text="Counts per bound of jobs.statistics")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["queue", "task", "minute"], name="stat_one_per_task_and_minute")]
        indexes = [models.Index(fields=["minute"], name="stat_minute")]

    def __str__(self) -> str:
        return f"{self.task} {self.minute}"


class OwnerStat(models.Model):
    """How many jobs of one user and task ended in one quarter of an hour: what digests and reports read.

    A quarter of an hour, because a day begins at one in every time zone.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, db_index=False, related_name="+")
    quarter = MomentField(help_text="Its beginning")
    task = models.CharField(max_length=255)
    completed_count = models.PositiveIntegerField(default=0)
    failed_count = models.PositiveIntegerField(default=0)
    cancelled_count = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True, default="", help_text="Why the last of those that failed did")

    class Meta:
        constraints = [
            # In the order in which it is read: the index of the constraint is the only one.
            models.UniqueConstraint(fields=["owner", "quarter", "task"], name="ownerstat_one_per_task_and_quarter")
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.quarter}"


class BulkAction(models.Model):
    """An operator's wish for all jobs that matched a filter at one moment, and how far it is carried out.

    The rows of the jobs are what it works on; `cursor` is where it goes on. See `jobs.bulk_actions`.
    """

    class Kind(models.TextChoices):
        """What is done to each job."""

        RETRY = "run again"
        CANCEL = "cancel"
        PROMOTE = "promote"
        EDIT = "edit"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    filter = models.JSONField(default=dict, help_text="As JobFilter.as_json() says it")
    changes = payload_field(null=True, blank=True, help_text="Of an edit: the arguments that it sets, by name")
    requested_at = MomentField(db_default=Now(), help_text="Nothing that came to match later is touched")
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    actor_name = models.CharField(max_length=255)
    job_id = models.UUIDField(help_text="The job that carries it out")
    target_count = models.PositiveIntegerField(help_text="Jobs that matched when it was requested")
    cursor = models.UUIDField(null=True, blank=True, help_text="The last job that was looked at, in the order of ids")
    done_count = models.PositiveIntegerField(default=0)
    refused_count = models.PositiveIntegerField(default=0)
    refusals = models.JSONField(default=list, blank=True, help_text="The first sentences of those that were refused")
    finished_at = MomentField(null=True, blank=True)

    def __str__(self) -> str:
        return f"bulk action {self.pk}"


class AuditEntry(models.Model):
    """What an operator did to a job, a queue or many jobs: written by the transaction that did it, never changed."""

    at = MomentField(db_default=Now())
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    actor_name = models.CharField(max_length=255, help_text="Who it was, also when the user is gone or never was one")
    thing_type = models.CharField(max_length=32, help_text="The model's name: job, queuecontrol, bulkaction")
    thing_id = models.CharField(max_length=64)
    thing = models.CharField(max_length=300, help_text="In words, also when the row is gone")
    what = models.TextField()
    # Secrets hidden: an entry outlives the job whose payload it tells.
    details = payload_field(null=True, blank=True)
    bulk_action = models.ForeignKey(
        BulkAction, null=True, blank=True, on_delete=models.PROTECT, related_name="entries", help_text="Part of this"
    )

    class Meta:
        verbose_name_plural = "audit entries"
        indexes = [models.Index(fields=["thing_id"], name="auditentry_thing")]

    def __str__(self) -> str:
        return f"{self.what} {self.thing}"
