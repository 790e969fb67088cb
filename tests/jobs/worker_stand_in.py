"""What a claimer sees of a Celery worker: a pool with slots, and an event loop that the test turns."""

from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from celery.app.task import Context
from celery.worker import state

from jobs import settle
from jobs.claims import Claim
from jobs.settle import Run


class Started:
    """A job that the pool runs, as one of Celery's requests."""

    def __init__(self, claim: Claim, headers: dict[str, Any], ended: Callable[..., None]) -> None:
        self.claim = claim
        self.time_start: float | None = None
        self._context = Context(**headers)
        self._ended = ended

    def end(self) -> None:
        """The body has returned."""
        assert settle.complete(Run(self.claim.job_id, self.claim.token), result=None, claim=self.claim)
        state.reserved_requests.discard(self)
        self._ended(None, ())


class WorkerStandIn:
    """A worker of some queues that knows some tasks. It is its own consumer. Jobs start when `turn` is called, and end
    when the test ends them."""

    def __init__(self, *queues: str, tasks: Iterable[str], slot_count: int = 1) -> None:
        self.pool = SimpleNamespace(num_processes=slot_count)
        self.consume_from = dict.fromkeys(queues)
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=self))
        self.consumer: WorkerStandIn | None = self
        self.connection: object | None = object()
        self.strategies: dict[str, Callable[..., None]] = dict.fromkeys(tasks, self._start)
        self.on_task_message: tuple[Callable[..., None], ...] = ()
        self.started: list[Started] = []
        self.left_count = 0
        self._calls: deque[Callable[[], None]] = deque()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Celery's: the loop calls it at its next turn."""
        self._calls.append(call)

    def leave_the_broker(self) -> None:
        """The claimer has found that Redis does not answer."""
        self.left_count += 1

    def turn(self) -> None:
        """One turn of the event loop, in the test's thread."""
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    @property
    def started_ids(self) -> list[UUID]:
        """The jobs that were started, in that order."""
        return [started.claim.job_id for started in self.started]

    def close(self) -> None:
        """Nothing of it is left in Celery's own state."""
        for started in self.started:
            state.reserved_requests.discard(started)

    def _start(self, message: Any, body: Any, ended: Any, rejected: Any, callbacks: Any) -> None:
        started = Started(message.headers["claimed"], message.headers, ended)
        state.reserved_requests.add(started)
        self.started.append(started)
