"""What this worker has claimed and not yet settled, as Celery's requests."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any
from uuid import UUID

from billiard.einfo import ExceptionInfo
from celery.app.task import Context
from celery.worker import state
from celery.worker.request import Request
from django.db import connections

from jobs.claims import Claim
from jobs.redaction import redacted_repr
from jobs.worker import identity

_UNREADABLE = "…"
# What a call has said of how its arguments are to be shown.
REPRS = ("argsrepr", "kwargsrepr")
# What a run notes in its request, and what Celery's message says of itself.
_TAKEN = frozenset(
    [
        "argsrepr",
        "asked_at",
        "claim",
        "claim_token",
        "claimed",
        "compression",
        "has_left_body",
        "is_lost",
        "kwargsrepr",
        "lang",
        "log_is_full",
        "log_kept",
        "own_max_retries",
        "replacement",
        "reported_at",
        "retry_signature",
        "run",
        "run_started",
        "settled",
        "stage",
        "task",
    ]
)


def headers_of(claim: Claim) -> dict[str, Any]:
    """What a claimed job looks like to Celery: the headers of the message that it would have been, and the claim."""
    stamps = stamps_of(claim.headers)
    return {
        "shadow": None,
        "group": None,
        "group_index": None,
        "replaced_task_nesting": nesting_of(claim.headers),
        "stamped_headers": list(stamps),
        "stamps": stamps,
        # As attributes, too, but for names that mean something to Celery or to a run.
        **{name: value for name, value in claim.headers.items() if name not in _TAKEN and not hasattr(Context, name)},
        **{name: claim.headers[name] for name in REPRS if isinstance(claim.headers.get(name), str)},
        "headers": claim.headers,
        # When it starts, the row has decided.
        "lang": "py",
        "eta": None,
        "expires": None,
        "task": claim.task,
        "id": str(claim.job_id),
        "root_id": str(claim.root_id or claim.job_id),
        "parent_id": claim.parent_id and str(claim.parent_id),
        "retries": claim.attempt - 1,
        "timelimit": [claim.time_limit_seconds, claim.soft_time_limit_seconds],
        # Whether a result is wanted, the row says: without this, a retry would never reach the backend.
        "ignore_result": False,
        "claim_token": claim.token,
        "claimed": claim,
    }


def nesting_of(headers: Mapping[str, Any]) -> int:
    """How many times a job was replaced by another task so far. Somebody may have written its headers by hand."""
    nesting = headers.get("replaced_task_nesting")
    return nesting if isinstance(nesting, int) else 0


def stamps_of(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The stamps among the headers of a job."""
    names = headers.get("stamped_headers")
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return {name: headers.get(name) for name in named}


def delivery_of(claim: Claim) -> dict[str, Any]:
    """Where Celery is told that it came from."""
    return {
        "exchange": "",
        "routing_key": claim.queue,
        "priority": claim.priority,
        "redelivered": claim.redelivered,
    }


@dataclass
class ClaimedMessage:
    """A claimed job in the place of a message of kombu's: there is nothing to decode, and nobody to acknowledge."""

    headers: dict[str, Any]
    delivery_info: dict[str, Any]
    properties: dict[str, Any] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: ([], {}, {}))
    payload: Any = field(default_factory=lambda: ([], {}, {}))
    content_type: str | None = None
    content_encoding: str | None = None
    acknowledged: bool = False

    @classmethod
    def of(cls, claim: Claim, claimed_at: float) -> "ClaimedMessage":
        """The message of a claim that came at this moment, by the clock of this machine's processes."""
        headers = {**headers_of(claim), "claimed_at": claimed_at}
        return cls(headers, delivery_of(claim), {"priority": claim.priority})


def _reads_every_end(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Of a run that left its thread by an exception such as SystemExit, the pool gives that in the place of an end.

    Celery cannot read it, and would keep the slot. The run is lost, as where a pool process ends itself.
    """

    @wraps(on_success)
    def read(self: "JobRequest", end: Any, **options: Any) -> Any:
        return self.on_failure(end) if isinstance(end, ExceptionInfo) else on_success(self, end, **options)

    return read


class JobRequest(Request):
    """Celery's request for a claimed job. Monitors see its arguments, shortened and without secrets.

    They are read only where somebody looks, and one that cannot be shown keeps nobody from running.
    """

    time_limits: tuple[float | None, float | None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        hard_seconds, soft_seconds = self.time_limits
        if soft_seconds == hard_seconds and self._task.soft_time_limit is None:
            # Nobody has set a soft one. Both would strike at the same moment, and what becomes of the job would be a
            # matter of chance.
            self.time_limits = (hard_seconds, None)

    @cached_property
    def _texts(self) -> tuple[str, str]:
        claim = self._request_dict.get("claimed")
        if not isinstance(claim, Claim):
            return self._argsrepr, self._kwargsrepr
        try:
            return self._argsrepr or redacted_repr(tuple(claim.args)), self._kwargsrepr or redacted_repr(claim.kwargs)
        except (ValueError, TypeError, RecursionError):
            return _UNREADABLE, _UNREADABLE

    @property
    def argsrepr(self) -> str:
        """The arguments by position."""
        return self._texts[0]

    @property
    def kwargsrepr(self) -> str:
        """The arguments by name."""
        return self._texts[1]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Celery makes a class for each task, with an `on_success` of its own.
        cls.on_success = _reads_every_end(cls.on_success)

    def _success_was_stored(self) -> Any:
        try:
            return super()._success_was_stored()
        finally:
            # Celery asks in the main thread, which forks pool processes: they are to inherit no connection.
            connections.close_all()

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active` and Flower are told."""
        told: dict[str, Any] = super().info(safe=safe)
        return {**told, "args": self.argsrepr, "kwargs": self.kwargsrepr}


# Claims that are on their way into one of Celery's requests, by token.
arriving: dict[str, Claim] = {}
# The jobs of all claims of this worker, by token, until the audit has seen that their ends were written.
claimed: dict[str, UUID] = {}


def running_tokens() -> set[str]:
    """The claim tokens of all that this worker has claimed and not yet settled, whether it has started or not.

    By token, not by job: a job that was cancelled and run again may run twice here, once as its owner.
    """
    return {*list(arriving), *_by_token(state.reserved_requests, state.active_requests)}


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
