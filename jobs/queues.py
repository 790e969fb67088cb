"""Every queue of the project, declared once: web, workers, compose and dashboard read this list.

A project that has the ledger as a package declares its own, by `declare`.
"""

from dataclasses import dataclass

from jobs.quiet_hours import QuietHours
from jobs.rates import InvalidLimit, Rate

# How an operator lifts a declared limit.
NO_LIMIT = "none"


@dataclass(frozen=True, kw_only=True)
class Queue:
    """One queue and what holds for its jobs unless the task or the call says otherwise.

    Attempts count runs: `max_attempts=3` is a first run and two retries. Backoff doubles with each retry, beginning at
    `backoff_seconds`; it applies only to tasks that declare `autoretry_for`. Thresholds turn `/health` to degraded.

    Limits hold over all workers together: starts per time ("10/s", "100/m", "1000/h"), jobs that run at once (0: as
    many as there are slots), and hours in which nothing starts ("22:00-07:00 Europe/Berlin").
    """

    name: str
    purpose: str
    max_attempts: int = 3
    backoff_seconds: int = 1
    soft_time_limit_seconds: int = 60
    time_limit_seconds: int = 75
    max_stalls: int = 1
    keep_completed_count: int = 100
    keep_failed_count: int = 500
    waiting_threshold_count: int = 1000
    failed_threshold_count: int = 50
    # Of the job that has waited longest.
    oldest_threshold_seconds: int = 86_400
    rate_limit: str = NO_LIMIT
    concurrency_limit: int = 0
    quiet_hours: str = NO_LIMIT

    def __post_init__(self) -> None:
        # At import: a limit that is written wrongly stops every process, instead of being none.
        try:
            _ = self.rate, self.quiet
        except InvalidLimit as error:
            raise InvalidLimit(f"Queue {self.name!r}: {error}") from error
        if isinstance(self.concurrency_limit, bool) or not isinstance(self.concurrency_limit, int):
            raise InvalidLimit(f"Queue {self.name!r}: concurrency_limit={self.concurrency_limit!r} is no whole number.")
        if self.concurrency_limit < 0:
            raise InvalidLimit(f"Queue {self.name!r}: concurrency_limit={self.concurrency_limit!r} is less than none.")

    @property
    def rate(self) -> Rate | None:
        """The rate limit, if it has one."""
        return None if self.rate_limit == NO_LIMIT else Rate.parse(self.rate_limit)

    @property
    def quiet(self) -> QuietHours | None:
        """The quiet hours, if it has any."""
        return None if self.quiet_hours == NO_LIMIT else QuietHours.parse(self.quiet_hours)

    @property
    def limits(self) -> str:
        """Its limits in a few words; empty where it has none."""
        words = [
            str(self.rate) if self.rate is not None else "",
            f"{self.concurrency_limit} at once" if self.concurrency_limit else "",
            f"quiet {self.quiet_hours}" if self.quiet is not None else "",
        ]
        return ", ".join(word for word in words if word)

    @property
    def is_paced(self) -> bool:
        """Whether starts of its jobs are limited, so that `jobs.dispatcher.pacing` grants them."""
        return self.rate is not None or self.concurrency_limit > 0 or self.quiet is not None


class UnknownQueue(ValueError):
    """A job was sent to a queue that nobody declared, so that no worker would ever take it."""

    def __init__(self, name: object) -> None:
        super().__init__(f"There is no queue {name!r}. Declared: {', '.join(sorted(QUEUES))}.")


QUEUES = {
    queue.name: queue
    for queue in [
        Queue(name="default", purpose="Whatever has no queue of its own: digests, housekeeping"),
        Queue(name="email", purpose="E-mail, SMS and push", rate_limit="10/s"),
        Queue(
            name="images",
            purpose="Renditions of pictures",
            max_attempts=2,
            backoff_seconds=5,
            soft_time_limit_seconds=120,
            time_limit_seconds=150,
        ),
        Queue(
            name="video",
            purpose="Posters and web copies of videos",
            max_attempts=2,
            backoff_seconds=30,
            soft_time_limit_seconds=1800,
            time_limit_seconds=1860,
        ),
        Queue(
            name="reports",
            purpose="PDF reports: expensive, so never again without a person's wish",
            max_attempts=1,
            soft_time_limit_seconds=600,
            time_limit_seconds=660,
        ),
        Queue(
            name="webhooks",
            purpose="Webhooks, in and out",
            max_attempts=5,
            backoff_seconds=5,
            soft_time_limit_seconds=30,
            time_limit_seconds=45,
        ),
        # HubSpot allows a private app 100 calls in 10 s, and a job makes two at the most.
        Queue(
            name="crm",
            purpose="Contacts and analytics at the CRM",
            max_attempts=5,
            backoff_seconds=5,
            rate_limit="5/s",
        ),
    ]
}


# Those of which every job has a limit to ask, as they are declared.
PACED_QUEUES = [queue.name for queue in QUEUES.values() if queue.is_paced]


def declare(*queues: Queue) -> None:
    """Puts other queues in the place of these: for settings of a project that has the ledger as a package.

    Raises ValueError where two have one name, or none is called "default", where tasks go that name none.
    """
    names = [queue.name for queue in queues]
    if len(set(names)) < len(names) or "default" not in names:
        raise ValueError(f"Queues {names}: expected different names, and a queue 'default' among them.")
    QUEUES.clear()
    QUEUES.update(zip(names, queues, strict=True))
    PACED_QUEUES[:] = [queue.name for queue in queues if queue.is_paced]


def queue_named(name: object) -> Queue:
    """The declaration of a queue; raises UnknownQueue, which lists the declared ones."""
    queue = QUEUES.get(name) if isinstance(name, str) else None
    if queue is None:
        raise UnknownQueue(name)
    return queue


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """One type of worker process: the queues it consumes, and how. Scaled by itself, so that a slow report never delays
    a mail. Threads for what waits on the network, processes for what burns processor time or must end at its limits."""

    name: str
    queues: tuple[str, ...]
    pool: str
    concurrency: int

    @property
    def arguments(self) -> list[str]:
        """What follows `celery` to start one such worker; its node is named after the host, so after its container."""
        return [
            "-A",
            "config",
            "worker",
            # Workers need nothing from each other: what they share is in the database.
            "--without-mingle",
            "--without-gossip",
            f"--queues={','.join(self.queues)}",
            f"--concurrency={self.concurrency}",
            f"--pool={self.pool}",
            f"--hostname={self.name}@%h",
        ]


WORKER_GROUPS = [
    WorkerGroup(name="worker-email", queues=("email",), pool="threads", concurrency=5),
    WorkerGroup(name="worker-media", queues=("images", "video"), pool="prefork", concurrency=2),
    WorkerGroup(name="worker-reports", queues=("reports",), pool="prefork", concurrency=1),
    WorkerGroup(name="worker-default", queues=("default", "webhooks", "crm"), pool="threads", concurrency=5),
]


def worker_group_named(name: str) -> WorkerGroup:
    """The declaration of a type of worker; raises LookupError, which lists the declared ones."""
    for group in WORKER_GROUPS:
        if group.name == name:
            return group
    raise LookupError(
        f"There is no worker group {name!r}. Declared: {', '.join(group.name for group in WORKER_GROUPS)}."
    )
