"""Errors that tasks raise to tell the ledger what to do."""

from celery.exceptions import Ignore


class Permanent(Exception):
    """The job cannot succeed however often it is tried: it fails at once, with this sentence as its error."""


class Interrupted(Ignore):
    """A run ended through no fault of its task and left nothing behind: its job waits again, and nothing is counted."""


class LeaseLost(Exception):
    """This run no longer owns its job: the worker was given up, or somebody cancelled the job.

    Whatever the run still writes to the ledger is refused, so the best it can do is to stop.
    """
