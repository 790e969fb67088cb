"""What holds of the whole ledger, whatever was killed before."""

from django.db.models import Exists, F, OuterRef, Q

from jobs.models import Attempt, AuditEntry, Duty, Job, Tick, Worker


def _since_an_operator_ran_it_again(job: Job) -> list[Attempt]:
    """Then the attempts have started over; the older ones are kept."""
    again = AuditEntry.objects.filter(thing_id=str(job.pk), what__icontains="run again").order_by("pk").last()
    return list(job.attempts.filter(ended_at__gte=again.at) if again else job.attempts.all())


def assert_ledger_consistent() -> None:
    """Looks at the whole world: nothing half done, nothing owned by the dead, no run uncounted."""
    living = Worker.objects.filter(pk=OuterRef("worker_id"), dead_at__isnull=True)
    assert not Job.objects.filter(~Exists(living), state="active").exists(), "an active job has no living worker"
    assert not Job.objects.filter(state="completed").exclude(progress_percent=100).exists(), "completed, but not whole"
    failed_in_silence = Job.objects.filter(state__in=["failed", "cancelled"], error="")
    assert not failed_in_silence.exists(), "a job failed without a word"
    too_early = Q(finished_at__lt=F("started_at")) | Q(started_at__lt=F("created_at"))
    assert not Job.objects.filter(too_early).exists(), "a job ended before it began"
    for job in Job.objects.all():
        attempts = _since_an_operator_ran_it_again(job)
        assert all(attempt.number <= job.attempt for attempt in attempts), f"{job}: an attempt that was never due"
        outcomes = [attempt.outcome for attempt in attempts]
        assert outcomes.count("stalled") == job.stalled_count, f"{job}: stalls and history differ"
        assert outcomes.count("retried") == job.attempt - 1, f"{job}: attempts and history differ"
    assert Duty.objects.filter(name="dispatcher").count() <= 1
    made = Job.objects.filter(pk=OuterRef("job_id"))
    assert not Tick.objects.filter(~Exists(made), outcome="enqueued").exists(), "a tick without its job"
