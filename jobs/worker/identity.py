"""Who this worker process is: a fresh id at each start, which pool processes inherit when they are forked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

_incarnation: UUID | None = None


class NotAWorker(RuntimeError):
    """Something that only a worker may do was tried in another process."""


def assume(incarnation: UUID) -> None:
    """Makes this process, and those forked from it, the worker of that id."""
    global _incarnation
    _incarnation = incarnation


@contextmanager
def assumed(incarnation: UUID) -> Iterator[None]:
    """Makes this process the worker of that id for a moment."""
    global _incarnation
    before, _incarnation = _incarnation, incarnation
    try:
        yield
    finally:
        _incarnation = before


def incarnation() -> UUID:
    """The id of this worker; raises NotAWorker elsewhere."""
    if _incarnation is None:
        raise NotAWorker("This process is not a worker.")
    return _incarnation


def new_token() -> str:
    """A claim token of this worker that was never used before."""
    return f"{incarnation().hex}:{uuid4().hex}"


def token_of(request: Any) -> str | None:
    """The claim token of one of Celery's requests, or None where it has claimed nothing.

    The pool process and the worker's main process both have it, so either may settle the job.
    """
    return getattr(request, "claim_token", None)
