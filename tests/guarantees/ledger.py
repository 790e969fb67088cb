"""What holds of the whole ledger, whatever was killed before."""

from django.db.models import Exists, F, OuterRef, Q

from jobs.models import Attempt, Duty, Job, Tick, Worker


def assert_ledger_consistent() -> None:
    """Looks at the whole world: nothing half done, nothing owned by the dead, no run uncounted."""
    living = Worker.objects.filter(pk=OuterRef("worker_id"), dead_at__isnull=True)
    assert not Job.objects.filter(~Exists(living), state="active").exists(), "an active job has no living worker"
    assert not Job.objects.filter(state="completed").exclude(progress_percent=100).exists(), "completed, but not whole"
    failed_in_silence = Job.objects.filter(state__in=["failed", "cancelled"], error="")
    assert not failed_in_silence.exists(), "a job failed without a word"
    too_early = Q(finished_at__lt=F("started_at")) | Q(started_at__lt=F("created_at"))
    assert not Job.objects.filter(too_early).exists(), "a job ended before it began"
    assert not Attempt.objects.filter(number__gt=F("job__attempt")).exists(), "an attempt that was never due"
    for job in Job.objects.all():
        outcomes = [attempt.outcome for attempt in job.attempts.all()]
        assert outcomes.count("stalled") == job.stalled_count, f"{job}: stalls and history differ"
        assert outcomes.count("retried") == job.attempt - 1, f"{job}: attempts and history differ"
    assert Duty.objects.filter(name="dispatcher").count() <= 1
    made = Job.objects.filter(pk=OuterRef("job_id"))
    assert not Tick.objects.filter(~Exists(made), outcome="enqueued").exists(), "a tick without its job"
