"""The bootstep through which a Celery worker becomes a worker of the ledger."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import uuid4

from celery import bootsteps
from celery.concurrency import prefork, solo
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.signals import worker_process_init, worker_shutdown
from django.core.exceptions import ImproperlyConfigured

from jobs.worker import identity

logger = logging.getLogger(__name__)

# All of them together; a listener is woken by nothing but a ring, or after a second.
_THREADS_END_SECONDS = 2
_LOST_PROCESS_SECONDS = 0.5
# How soon a guest is to see that its row is gone.
_GUEST_LEASE_SECONDS = 0.5


class LedgerStep(bootsteps.StartStopStep):
    """Takes an identity before the pool forks; registers the worker and starts its threads once the pool is up.

    A worker that does not run in the main thread is a *guest*, as that of `celery.contrib.testing.worker.start_worker`
    in a test suite: the process is somebody else's, and goes on after it.
    """

    requires = ("celery.worker.components:Pool",)
    label = "Ledger"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        identity.assume(uuid4())
        self.threads: list[Any] = []
        # What a guest leaves as it was.
        self._stay = ExitStack()

    def create(self, worker: Any) -> None:
        """Called before the pool forks."""
        from jobs.worker.pool import LedgerPool

        if isinstance(worker.pool, prefork.TaskPool):
            worker.pool.Pool = LedgerPool
        elif not isinstance(worker.pool, (solo.TaskPool, ThreadPool)):
            raise ImproperlyConfigured(
                f"{type(worker.pool).__module__} is no pool for the ledger: start the worker with --pool=prefork, "
                "--pool=threads or --pool=solo."
            )

    def start(self, worker: Any) -> None:
        """Writes the worker's row, so that its claims count, then keeps its lease and does the dispatcher's duties."""
        # The ledger's modules need Django set up and the tasks imported, which is so only from here on.
        from jobs import checks, doctor
        from jobs.dispatcher.prompt import PromptThread
        from jobs.dispatcher.thread import DispatcherThread
        from jobs.task import JobTask
        from jobs.worker import claimer, lease, process, remote, surroundings
        from jobs.worker.cancelling import EndCancelled
        from jobs.worker.progress import TellProgress
        from jobs.worker.shutdown import Shutdown
        from jobs.worker.time_limits import TimeLimits

        checks.refuse_unsafe_tasks(worker.app)
        tasks = sorted(name for name, task in worker.app.tasks.items() if isinstance(task, JobTask))
        is_guest = threading.current_thread() is not threading.main_thread()
        register = partial(
            lease.register,
            node=worker.hostname,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_space=process.pid_space(),
            pid_started_ticks=process.started_ticks(os.getpid()),
            pool=type(worker.pool).__module__.rpartition(".")[2],
            concurrency=worker.concurrency,
            versions=doctor.own_versions(),
            queues=sorted(worker.app.amqp.queues.consume_from),
            tasks=tasks,
        )
        register()
        limits = TimeLimits(concurrency=worker.concurrency)
        claims = claimer.Claimer(worker, tasks=tasks)
        claimer.be(claims)
        shutdown = Shutdown(worker, limits=limits, claimer=claims, resign=self.resign)
        dispatcher = DispatcherThread()
        dispatcher.own += [TellProgress(worker).run_once, remote.LateRevocations().run_once]
        if isinstance(worker.pool, prefork.TaskPool):
            dispatcher.own.append(EndCancelled(worker).run_once)
        else:
            dispatcher.own += [limits.run_once] if is_guest else [limits.run_once, shutdown.replace_the_stuck]
        prompt = PromptThread(leads=lambda: dispatcher.leads, record=dispatcher.record)
        dispatcher.slow.counts.places = prompt.pacer.levels.places
        self.threads = [
            lease.LeaseThread(
                slot_count=lambda: claims.intake.slot_count,
                idle_seconds=claims.idle_seconds,
                deaf_seconds=claims.deaf_seconds,
                **_of_a_guest(register) if is_guest else {},
            ),
            dispatcher,
            dispatcher.slow,
            prompt,
            claims,
        ]
        for thread in self.threads:
            thread.start()
        worker_shutdown.connect(self.resign, weak=False)
        remote.install()
        if is_guest:
            self._stay.enter_context(surroundings.kept())
            self._stay.callback(_close_connections)
        else:
            shutdown.install()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Looks often for pool processes that died.

        Celery is told of a death by the end of a pipe, which a dying process closes before it can be waited for: most
        often it looks in vain then, and again only after five seconds.
        """
        hub.call_repeatedly(_LOST_PROCESS_SECONDS, worker.pool.maintain_pool)

    def stop(self, worker: Any) -> None:
        """Nothing yet: Celery stops its steps while jobs still run, and those need the lease. `resign` comes last."""

    def terminate(self, worker: Any) -> None:
        """A cold shutdown, as that of a guest always is: nobody waits for jobs that run, and Celery says no more."""
        self.resign()

    def resign(self, **_: Any) -> None:
        """The pool has ended: gives back what is left and says that this worker is gone."""
        from jobs.dispatcher import leader
        from jobs.worker import lease, notes

        # In this process, another worker may follow.
        worker_shutdown.disconnect(self.resign)
        for thread in self.threads:
            thread.stop()
        deadline = time.monotonic() + _THREADS_END_SECONDS
        for thread in self.threads:
            # First of all: the lease's thread would take the row for one of a worker given up, and the dispatcher's
            # would take the leadership again.
            thread.join(timeout=max(0, deadline - time.monotonic()))
        lease.resign()
        leader.let_go()
        # Of threads, or of this one; pool processes write their own.
        notes.write_the_last()
        self._stay.close()


def _of_a_guest(register: Callable[[], None]) -> dict[str, Any]:
    """How the lease of a guest is kept: where its row is gone, because a test suite has emptied the tables, it is
    another worker from then on."""

    def begin_anew() -> None:
        identity.assume(uuid4())
        register()

    return {"pause_seconds": _GUEST_LEASE_SECONDS, "given_up": begin_anew}


def _close_connections() -> None:
    """Those of this thread, in which jobs may have run, and of the one that writes what they said."""
    from django.db import connections

    from jobs import settle
    from jobs.worker import notes

    notes.own_notes().close()
    settle.close_beside()
    connections.close_all()


@worker_process_init.connect
def outlive_signals_to_the_group(**_: Any) -> None:
    """Pool processes ignore SIGTERM: supervisors send it to the whole group, and the jobs of all would be lost at once.

    The worker's main process ends them when the time has come.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
