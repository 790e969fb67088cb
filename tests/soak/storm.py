"""The storm: who takes part, what is done to them, and how all is brought to rest."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.db import connection, connections
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from devstack.terminal import say
from devstack.throwaway import Servers
from jobs.doorbell import REDIS_AWAY, Doorbell
from jobs.models import CatchUp, Job, Worker
from jobs.patience import DATABASE_AWAY
from jobs.queues import QUEUES
from tests.processes import Process, Processes
from tests.soak import poison
from tests.soak.account import Account, Death
from tests.soak.odd_tasks import stubborn
from tests.waiting import wait_until

_WORKERS = (("prefork", 2), ("prefork", 2), ("prefork", 1), ("threads", 3))
_LOOK_SECONDS = 0.25
_SAY_SECONDS = 10
_REST_SECONDS = 180
# While Redis is away, some job must complete in each of these; after its return, one with limits.
_STANDSTILL_SECONDS = 15
_RETURN_SECONDS = 60


def _completed_count(*, limited: bool) -> int:
    return Job.objects.filter(state="completed", concurrency_key__isnull=not limited).count()


@dataclass
class Player:
    """A process that is started again whenever it has ended, as a supervisor does."""

    start: Callable[[], Process]
    process: Process
    frozen_until: float | None = None


class Storm:
    """Four workers, two producers, two beats, PostgreSQL and Redis, and somebody who wishes them ill."""

    def __init__(self, servers: Servers, *, seed: int, backlog: int = 0) -> None:
        self._servers = servers
        self._backlog = backlog
        self._most_messages = 0
        self._doorbell = Doorbell.within(_LOOK_SECONDS)
        self._chance = random.Random(seed)
        self._processes = Processes(Path(tempfile.mkdtemp(prefix="soak-", dir=servers.folder)))
        self._deaths: list[Death] = []
        self._acts: Counter[str] = Counter()
        self._complaints: list[str] = []
        self._workers: list[Player] = []
        self._producers: list[Player] = []
        self._beats: list[Player] = []

    def rage(self, *, seconds: float) -> Account:
        """The storm, then the calm in which everything must come to its end, then the account."""
        begun = said = time.monotonic()
        self._set_up()
        try:
            next_act = begun + 5
            while (now := time.monotonic()) < begun + seconds:
                self._look_after_players()
                self._count_messages()
                if now >= next_act:
                    self._act()
                    next_act = time.monotonic() + self._chance.expovariate(0.6)
                if now >= said + _SAY_SECONDS:
                    said = now
                    self._say(now - begun)
                time.sleep(_LOOK_SECONDS)
            self._calm()
        finally:
            self._processes.stop_all()
        return self._account()

    def starve(self, *, seconds: float) -> Account:
        """Redis is away, in each way for a third of the time, and nobody else is touched; then as after the storm."""
        self._set_up()
        try:
            self._goes_on("Before", seconds=2 * _STANDSTILL_SECONDS)
            for away in (self._redis_killed, self._redis_frozen, self._redis_wiped):
                what = away.__name__.strip("_").replace("_", " ")
                say(what)
                self._acts[what] += 1
                with away() as again:
                    self._goes_on(what, seconds=seconds / 3, meanwhile=again)
                self._resumes(what)
            self._calm()
        finally:
            self._processes.stop_all()
        return self._account()

    def _account(self) -> Account:
        return Account.of(self._deaths, self._acts, most_messages=self._most_messages, complaints=self._complaints)

    # -- Redis away ----------------------------------------------------------------------------------------------------
    @contextmanager
    def _redis_killed(self) -> Iterator[Callable[[], object]]:
        assert self._servers.redis
        self._servers.redis.kill()
        yield bool
        self._servers.redis.start()

    @contextmanager
    def _redis_frozen(self) -> Iterator[Callable[[], object]]:
        assert self._servers.redis
        self._servers.redis.freeze()
        yield bool
        self._servers.redis.thaw()

    @contextmanager
    def _redis_wiped(self) -> Iterator[Callable[[], object]]:
        yield self.flush_redis

    def _goes_on(self, what: str, *, seconds: float, meanwhile: Callable[[], object] = bool) -> None:
        """Complains where jobs without limits stand still."""
        begun = said = moved = time.monotonic()
        count = _completed_count(limited=False)
        while (now := time.monotonic()) < begun + seconds:
            self._look_after_players()
            self._count_messages()
            meanwhile()
            if (current := _completed_count(limited=False)) > count:
                count, moved = current, now
            elif now >= moved + _STANDSTILL_SECONDS:
                self._complaints.append(f"{what}: no job without limits completed for {_STANDSTILL_SECONDS} s.")
                moved = now
            if now >= said + _SAY_SECONDS:
                said = now
                self._say(now - begun)
            time.sleep(_LOOK_SECONDS)

    def _resumes(self, what: str) -> None:
        """Complains where jobs with limits do not start again after the return of Redis."""
        before = _completed_count(limited=True)

        def goes_on() -> bool:
            self._look_after_players()
            self._count_messages()
            return _completed_count(limited=True) >= before + 20

        try:
            wait_until(goes_on, timeout=_RETURN_SECONDS)
        except AssertionError:
            self._complaints.append(f"{what}: jobs with limits have not resumed within {_RETURN_SECONDS} s.")

    def _count_messages(self) -> None:
        """Whoever pushes, and however workers come and go, they stay bounded (G17)."""
        try:
            self._most_messages = max(self._most_messages, sum(self._doorbell.message_counts(QUEUES).values()))
        except REDIS_AWAY:
            # It is one of those that the storm hits.
            return

    # -- Who takes part ----------------------------------------------------------------------------------------------
    def _set_up(self) -> None:
        poison.install()
        every_second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
        schedule = PeriodicTask.objects.create(name="soak", task="tests.soak.tasks.tick", interval=every_second)
        CatchUp.objects.create(periodic_task=schedule, policy=CatchUp.Policy.ALL, most_count=1000)
        for pool, concurrency in _WORKERS:
            self._workers.append(self._player(partial(self._worker, pool, concurrency)))
        for number in range(2):
            seed = f"{number} {self._chance.random()}"
            start = partial(
                self._processes.start, "tests.soak.producer", seed, env={"SOAK_BACKLOG": str(self._backlog)}
            )
            self._producers.append(self._player(start))
        self._beats += [self._player(partial(self._processes.start, "tests.beat")) for _ in range(2)]

    def _worker(self, pool: str, concurrency: int) -> Process:
        return self._processes.worker(
            *("default", "webhooks", "images"),
            pool=pool,
            concurrency=concurrency,
            include=["tests.soak.tasks", "tests.soak.odd_tasks"],
            waits=False,
        )

    @staticmethod
    def _player(start: Callable[[], Process]) -> Player:
        return Player(start, start())

    def _players(self) -> list[Player]:
        return [*self._workers, *self._producers, *self._beats]

    def _look_after_players(self) -> None:
        for player in self._players():
            if player.process.status is not None:
                player.process = player.start()
                player.frozen_until = None
            elif player.frozen_until is not None and time.monotonic() >= player.frozen_until:
                player.process.thaw()
                player.frozen_until = None

    # -- What is done to them ----------------------------------------------------------------------------------------
    def _act(self) -> None:
        acts: list[tuple[int, Callable[[], None]]] = [
            (8, self.kill_a_pool_process),
            (5, self.kill_a_worker),
            (2, self.kill_a_main_process),
            (3, self.freeze_a_worker),
            (2, self.end_a_worker),
            (2, self.kill_a_producer),
            (1, self.kill_beat),
            (2, self.flush_redis),
            (1, self.restart_redis),
            (1, self.hang_redis),
            (1, self.restart_postgresql),
            (1, self.kill_postgresql),
            (2, self.terminate_backends),
        ]
        (act,) = self._chance.choices([act for _, act in acts], [weight for weight, _ in acts])
        self._acts[act.__name__.replace("_", " ")] += 1
        try:
            act()
        except DATABASE_AWAY:
            connections.close_all()

    def kill_a_pool_process(self) -> None:
        player = self._chance.choice(self._workers[:3])
        children = player.process.children() if player.process.status is None else []
        if children:
            # It may have ended meanwhile.
            with suppress(ProcessLookupError):
                self._kill(player, lambda: player.process.kill_child(self._chance.choice(children)))

    def kill_a_worker(self) -> None:
        player = self._chance.choice(self._workers)
        self._kill(player, player.process.kill)

    def kill_a_main_process(self) -> None:
        player = self._chance.choice(self._workers)
        self._kill(player, player.process.kill_main)

    def _kill(self, player: Player, kill: Callable[[], Any]) -> None:
        mine = Worker.objects.filter(pid=player.process.pid, dead_at__isnull=True).values("id")
        running = list(Job.objects.filter(state="active", worker_id__in=mine).values_list("id", flat=True))
        kill()
        self._deaths.append(Death(timezone.now(), running))

    def freeze_a_worker(self) -> None:
        player = self._chance.choice(self._workers)
        if player.process.status is None and player.frozen_until is None:
            player.process.freeze()
            player.frozen_until = time.monotonic() + self._chance.uniform(0.5, 2.5) * settings.JOBS_LEASE_SECONDS

    def end_a_worker(self) -> None:
        player = self._chance.choice(self._workers)
        if player.process.status is None:
            player.process.terminate(group=self._chance.random() < 0.5)

    def kill_a_producer(self) -> None:
        self._chance.choice(self._producers).process.kill()

    def kill_beat(self) -> None:
        self._chance.choice(self._beats).process.kill()

    def flush_redis(self) -> None:
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            client.flushall()

    def restart_redis(self) -> None:
        assert self._servers.redis
        self._servers.redis.kill()
        time.sleep(self._chance.uniform(0, 3))
        self._servers.redis.start()

    def hang_redis(self) -> None:
        assert self._servers.redis
        self._servers.redis.freeze()
        time.sleep(self._chance.uniform(0, 3))
        self._servers.redis.thaw()

    def restart_postgresql(self) -> None:
        assert self._servers.postgres
        self._servers.postgres.stop()
        time.sleep(self._chance.uniform(0, 2))
        self._servers.postgres.start()
        connections.close_all()

    def kill_postgresql(self) -> None:
        assert self._servers.postgres
        self._servers.postgres.kill()
        self._servers.postgres.start()
        connections.close_all()

    def terminate_backends(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND backend_type = 'client backend' AND random() < 0.5"
            )

    # -- How all is brought to rest ------------------------------------------------------------------------------------
    def _calm(self) -> None:
        say("The storm is over; what was begun must end now.")
        PeriodicTask.objects.filter(name="soak").update(enabled=False)
        for player in (*self._producers, *self._beats):
            player.process.kill()
        self._producers.clear()
        self._beats.clear()
        Job.objects.filter(state="delayed").exclude(task=stubborn.name).update(run_at=timezone.now())

        def at_rest() -> bool:
            self._look_after_players()
            try:
                # Alone, a row that nobody can change is no fault of its own.
                live = Job.objects.filter(state__in=["delayed", "waiting", "active"]).exclude(task=stubborn.name)
                return not live.exists()
            except DATABASE_AWAY:
                connections.close_all()
                return False

        try:
            wait_until(at_rest, timeout=_REST_SECONDS)
        except AssertionError:
            say("Not all jobs came to an end.")

    def _say(self, seconds: float) -> None:
        try:
            done = Job.objects.filter(state="completed").count()
            live = Job.objects.filter(state__in=["delayed", "waiting", "active"]).count()
        except DATABASE_AWAY:
            connections.close_all()
            return
        say(f"{seconds:5.0f} s  {done} completed, {live} live, {self._acts.total()} acts")
