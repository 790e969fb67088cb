"""What a running job says beside its work: log lines, and progress that came too soon after the last.

A thread of the process writes them, over a connection of its own, in batches: no job waits for what it says. Notes may
be lost, the work may not: what a killed process had not written yet, at most a second of it, is gone, and while
PostgreSQL is away no more is kept than fits.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from celery import current_app
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_process_shutdown
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connections

from jobs import settle
from jobs.models import LogLine
from jobs.patience import DATABASE_AWAY, what_happened
from jobs.payloads import storable
from jobs.settle import Run

logger = logging.getLogger(__name__)

# Between two writes of one run's progress.
REPORT_SECONDS = 0.5
_PAUSE_SECONDS = 0.5
# Then the thread ends, with its connection, until there is something to write again.
_IDLE_SECONDS = 5.0
_BATCH = 500
# What is kept in memory while PostgreSQL is away.
_QUEUED_LINES = 10_000
_LINE_CHARACTERS = 2_000
_NO_MORE = "What this run has logged from here on is not kept."


class _Progress(NamedTuple):
    request: Any
    changes: dict[str, Any]


class Notes:
    """The notes of one process. `say` and `may_write` cost microseconds, and never raise or wait."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lines: deque[LogLine] = deque(maxlen=_QUEUED_LINES)
        self._progress: dict[Run, _Progress] = {}
        self._being_written: Run | None = None
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._there_is_something = threading.Event()
        self._thread: threading.Thread | None = None
        self._by_caller = False
        self._is_closing = False

    def say(self, line: LogLine) -> None:
        """Keeps a line of a job's log, soon."""
        self._lines.append(line)
        self._wake()

    def may_write(self, request: Any, **changes: Any) -> bool:
        """Whether a run writes its progress itself, at once. Where that is too soon after the last, it is kept, and
        written soon, unless something newer comes before that.

        What is being written at this moment is older: it must not come after what the run would write.
        """
        with self._lock:
            now = time.monotonic()
            if request.run != self._being_written and now - request.reported_at >= REPORT_SECONDS:
                request.reported_at = now
                self._progress.pop(request.run, None)
                return True
            self._progress[request.run] = _Progress(request, changes)
        self._wake()
        return False

    def flush(self) -> None:
        """Writes all there is. Raises what PostgreSQL raises; then it is still there."""
        self._write(after_seconds=0)

    def _write(self, *, after_seconds: float) -> None:
        """Writes the lines, and the progress of runs whose last is so many seconds old."""
        with self._writing:
            while self._lines:
                batch = [self._lines[index] for index in range(min(_BATCH, len(self._lines)))]
                _write_lines(batch)
                for _ in batch:
                    self._lines.popleft()
            for run in list(self._progress):
                self._write_progress(run, after_seconds=after_seconds)

    def _write_progress(self, run: Run, *, after_seconds: float) -> None:
        with self._lock:
            progress, now = self._progress.get(run), time.monotonic()
            if progress is None or now - progress.request.reported_at < after_seconds:
                return
            progress.request.reported_at = now
            self._being_written = run
        try:
            if not settle.report(run, **progress.changes):
                progress.request.is_lost = True
        finally:
            self._being_written = None
        with self._lock:
            # Not before it is written: a run that ends meanwhile writes it once more, with its end.
            if self._progress.get(run) is progress:
                del self._progress[run]

    @contextmanager
    def progress_written(self, run: Run) -> Iterator[None]:
        """Around the end of a run: writes its last progress, if it has not been written yet, in the same transaction.

        So an older one that is being written elsewhere waits, and finds the run ended. Where the end fails, it is kept.
        """
        progress = self._progress.get(run)
        if progress is None:
            yield
            return
        with settle.atomic():
            run.row().update(**progress.changes)
            yield
        with self._lock:
            self._progress.pop(run, None)

    @contextmanager
    def by_caller(self) -> Iterator[None]:
        """Nothing is written but by `flush`: for tests, whose jobs no other connection sees."""
        with self._writing:
            self._by_caller = True
        try:
            yield
        finally:
            self._by_caller = False

    def _wake(self) -> None:
        if self._by_caller:
            return
        with self._lock:
            self._there_is_something.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_writing, name="jobs-notes", daemon=True)
                self._thread.start()

    def _keep_writing(self) -> None:
        pause = threading.Event()
        while self._is_wanted():
            self._there_is_something.clear()
            try:
                if not self._by_caller:
                    self._write(after_seconds=REPORT_SECONDS)
                if self._progress:
                    self._there_is_something.set()
            except DATABASE_AWAY as error:
                logger.warning("Notes of jobs wait in memory: %s.", what_happened(error))
                self._there_is_something.set()
            except Exception:  # whatever is wrong with one of them, later ones and the jobs go on
                logger.exception("Notes of jobs could not be kept")
                self._lines.clear()
                self._progress.clear()
            connections[settle.ledger()].close_if_unusable_or_obsolete()
            pause.wait(_PAUSE_SECONDS)

    def close(self) -> None:
        """Ends the thread, with its connection, when it has written what there is."""
        self._is_closing = True
        self._there_is_something.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._is_closing = False

    def _is_wanted(self) -> bool:
        if self._there_is_something.wait(_IDLE_SECONDS) and not self._is_closing:
            return True
        with self._lock:
            if self._there_is_something.is_set() and not self._is_closing:
                return True
            self._thread = None
        connections.close_all()
        return False


def _write_lines(lines: list[LogLine]) -> None:
    """Writes these lines; where one of them cannot be kept, the others."""
    try:
        with settle.atomic():
            LogLine.objects.bulk_create(lines)
    except DATABASE_AWAY:
        raise
    except Exception:  # whatever is wrong with one of them
        if len(lines) == 1:
            logger.exception("A log line of job %s could not be kept", lines[0].job_id)
            return
        for line in lines:
            _write_lines([line])


class JobLogHandler(logging.Handler):
    """Keeps what is logged while a job runs, by whatever logger, with the job: its first lines, up to a bound."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called for every record of the process; most are no job's."""
        task: Any = current_app.current_worker_task
        request = task.request if task is not None else None
        run = getattr(request, "run", None)
        if request is None or run is None or record.name.startswith("jobs."):
            return
        try:
            message = storable(self.format(record)[:_LINE_CHARACTERS])
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - as logging's own handlers do: a wrong log call is no reason to fail
            self.handleError(record)
            return
        lines, size = getattr(request, "log_kept", None) or (0, 0)
        lines, size = lines + 1, size + len(message.encode())
        was_full = request.log_is_full if lines > 1 else False
        request.update(
            log_kept=(lines, size), log_is_full=lines > settings.JOBS_LOG_LINES or size > settings.JOBS_LOG_BYTES
        )
        if was_full:
            return
        own_notes().say(
            LogLine(
                job_id=run.job_id,
                attempt=request.claim.attempt,
                at=datetime.fromtimestamp(record.created, UTC),
                level=record.levelno,
                logger=storable(str(record.name))[:255],
                message=_NO_MORE if request.log_is_full else message,
            )
        )


_notes: Notes | None = None
_handler = JobLogHandler()


def listen() -> None:
    """Lets this process keep what jobs log. Asked at the beginning of each run, because whoever configures logging
    anew, as Celery and Django do at their start, takes the handlers of the root logger away."""
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)


def own_notes() -> Notes:
    """The notes of this process, not those of the one that it was forked from."""
    global _notes
    if _notes is None or _notes._pid != os.getpid():
        _notes = Notes()
    return _notes


@worker_process_shutdown.connect
def write_the_last(**_: Any) -> None:
    """A pool process, or the worker itself, ends."""
    try:
        own_notes().flush()
    except (DatabaseError, InterfaceError) as error:
        logger.warning("The last log lines are lost (%s).", str(error).strip())
