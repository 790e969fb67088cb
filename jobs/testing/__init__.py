"""For the tests of everybody's tasks: what was enqueued, and running it in the test's own process and transaction."""

from jobs.testing.assertions import assert_enqueued, assert_not_enqueued
from jobs.testing.running import EndlessJobs, run_due_jobs

__all__ = ["EndlessJobs", "assert_enqueued", "assert_not_enqueued", "run_due_jobs"]
