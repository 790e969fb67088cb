"""What this worker has received and not yet settled."""

from celery.worker import state

from jobs.worker import identity


def running_tokens() -> set[str]:
    """The claim tokens of all messages that were received and not yet settled, whether their jobs have started or not.

    By token, not by job: Celery's own table is keyed by the job's id, and a second hint for a running job, once it is
    skipped, would take the running one out of it.
    """
    while True:
        try:
            requests = [*state.reserved_requests, *state.active_requests]
        except RuntimeError:
            # The main thread changed a set while this one copied it.
            continue
        return {token for request in requests if (token := identity.token_of(request._context))}
