"""What this worker has received and not yet settled."""

from collections.abc import Iterable
from typing import Any

from celery.worker import state

from jobs.worker import identity


def running_tokens() -> set[str]:
    """The claim tokens of all messages that were received and not yet settled, whether their jobs have started or not.

    By token, not by job: Celery's own table is keyed by the job's id, and a second hint for a running job, once it is
    skipped, would take the running one out of it.
    """
    return set(_by_token(state.reserved_requests, state.active_requests))


def started() -> dict[str, Any]:
    """Celery's requests that a thread or process of the pool has begun and not yet left, by claim token.

    Keep them no longer than a look takes: Celery's sets are of weak references.
    """
    return {token: request for token, request in _by_token(state.active_requests).items() if request.time_start}


def _by_token(*groups: Iterable[Any]) -> dict[str, Any]:
    while True:
        try:
            requests = [request for group in groups for request in group]
        except RuntimeError:
            # The main thread changed a set while this one copied it.
            continue
        return {token: request for request in requests if (token := identity.token_of(request._context))}
