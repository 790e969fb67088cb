"""What Redis holds for the ledger: one doorbell per queue, and two for whoever leads the dispatcher.

A doorbell is a sorted set. In that of a queue lie at most one *ring*, which says that jobs without limits wait, and
*grants*, each of which names a job with limits that may start now. Of these there are no more than workers can use,
whoever gives them. Scores are priorities, so the most urgent is taken first. A ring that is doubled is still one; one
that is lost costs a worker a second, because it looks by itself as often. Nothing here is matched to jobs, so nothing
here can disagree with them.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import redis
from celery import current_app
from django.conf import settings
from kombu.exceptions import OperationalError as BrokerError
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.bounds import LEAST_URGENT, MOST_URGENT
from jobs.ids import InvalidJobId, parse_id

logger = logging.getLogger(__name__)

# Nobody listens for longer at once.
LISTEN_SECONDS = 1.0
# What Redis raises where it is away.
REDIS_AWAY = (redis.RedisError, BrokerError, OSError)
RING = "ring"
# Jobs without limits that are named at the doorbell of a queue, at most.
MOST_NAMED = 16
# Jobs with limits that are named to the leader, at most.
MOST_TOLD = 500
# Grants of a queue, where its workers have few slots.
LEAST_GRANTS = 16
# Those who lead are woken by these: delayed jobs that are due sooner than the next look, and jobs with limits.
DUE, PACED = "due", "paced"
_CERTIFICATE_IS = {"CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none"}
# What tells a grant from a job without limits that is named.
_GRANT = "grant:"
# Rings of the queues that are named last stay where they are.
_TAKE = """
local taken, left, known = {}, tonumber(ARGV[1]), {}
for place = 2, #ARGV do known[ARGV[place]] = true end
for _, key in ipairs(KEYS) do
    if left <= 0 then break end
    local ring = known[key] and redis.call('ZSCORE', key, 'ring')
    if ring then redis.call('ZREM', key, 'ring') end
    local found = redis.call('ZPOPMIN', key, left)
    for place = 1, #found, 2 do
        taken[#taken + 1] = {key, found[place], found[place + 1]}
        left = left - 1
    end
    if ring then redis.call('ZADD', key, ring, 'ring') end
end
return taken
"""
_NAME = """
local member = ARGV[1]
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then member = 'ring' end
return redis.call('ZADD', KEYS[1], ARGV[2], member)
"""
# Returns the places of those for which there was no room.
_PUSH_GRANTS = """
local count, refused = 0, {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if string.sub(member, 1, 6) == 'grant:' then count = count + 1 end
end
for place = 2, #ARGV, 2 do
    local is_there = redis.call('ZSCORE', KEYS[1], ARGV[place])
    if is_there or count < tonumber(ARGV[1]) then
        redis.call('ZADD', KEYS[1], ARGV[place + 1], ARGV[place])
        if not is_there then count = count + 1 end
    else
        refused[#refused + 1] = (place - 2) / 2
    end
end
return refused
"""
_WITHDRAW_OTHERS = """
local known = {}
for _, member in ipairs(ARGV) do known[member] = true end
for _, key in ipairs(KEYS) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        if string.sub(member, 1, 6) == 'grant:' and not known[member] then redis.call('ZREM', key, member) end
    end
end
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken from a queue's doorbell: a ring, where it names no job."""

    queue: str
    job_id: UUID | None
    priority: int = field(default=MOST_URGENT, compare=False)


class Contents(NamedTuple):
    """How many messages each queue has in Redis, and the keys in whose place somebody has put something else."""

    counts: dict[str, int]
    strange_keys: list[str]

    @property
    def sentences(self) -> list[str]:
        """What to do about those keys."""
        return [
            f"Redis's key {key} holds something else than messages, and nothing is taken from there. Find out who has "
            f"put it there, and delete it: redis-cli DEL {key}"
            for key in self.strange_keys
        ]


def key_of(name: str) -> str:
    """The Redis key of a doorbell, named after its queue, or DUE or PACED."""
    prefix = current_app.conf.broker_transport_options.get("global_keyprefix", "")
    kind = "leader" if name in (DUE, PACED) else "queue"
    return f"{prefix}handoff:{kind}:{name}"


def message_lists(queue: str) -> list[str]:
    """The Redis lists of a queue in which Celery's own messages lie: those of other producers, and of tasks that are
    none of the ledger's. Named as kombu names them, the most urgent priority first."""
    options: dict[str, Any] = current_app.conf.broker_transport_options
    prefix, separator = options.get("global_keyprefix", ""), options["sep"]
    return [f"{prefix}{queue}{separator}{step}" if step else f"{prefix}{queue}" for step in options["priority_steps"]]


def client(**options: Any) -> "redis.Redis":
    """A client of the broker, by the URL that workers go by. Kombu takes the words for `ssl_cert_reqs` that Python has
    as well as those of the Redis client."""
    url = settings.CELERY_BROKER_URL
    for theirs, ours in _CERTIFICATE_IS.items():
        url = url.replace(f"ssl_cert_reqs={theirs}", f"ssl_cert_reqs={ours}")
    return redis.Redis.from_url(url, **options)


def client_within(seconds: float) -> "redis.Redis":
    """A client of the broker whose every step ends within so many seconds, without a second try."""
    return client(socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0))


class Doorbell:
    """A connection to Redis, made when it is first needed. Every method raises one of `REDIS_AWAY`."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._take = client.register_script(_TAKE)
        self._name = client.register_script(_NAME)
        self._push_grants = client.register_script(_PUSH_GRANTS)
        self._withdraw_others = client.register_script(_WITHDRAW_OTHERS)

    @classmethod
    def patient(cls) -> "Doorbell":
        """For threads that may wait for a while: a little longer than they listen, where Redis hangs."""
        return cls.within(LISTEN_SECONDS + 0.3)

    @classmethod
    def within(cls, seconds: float) -> "Doorbell":
        """One whose every step ends within so many seconds, without a second try."""
        return cls(client_within(seconds))

    def close(self) -> None:
        """Lets go of Redis."""
        self._redis.close()

    def ping(self) -> None:
        """Whether Redis answers."""
        self._redis.ping()

    def ring(self, queue: str, priority: int) -> None:
        """Says that a job without limits waits in a queue."""
        self._redis.zadd(key_of(queue), {RING: priority})

    def ring_for(self, queue: str, job_id: UUID, priority: int) -> None:
        """The same, and names the job, unless so many are named there already."""
        self._name(keys=[key_of(queue)], args=[str(job_id), priority, MOST_NAMED])

    def wake(self, name: str) -> None:
        """Wakes the leader."""
        self._redis.zadd(key_of(name), {RING: 0})

    def tell(self, job_id: UUID) -> None:
        """Wakes the leader, and names a job with limits, unless so many are named already."""
        self._name(keys=[key_of(PACED)], args=[str(job_id), 0, MOST_TOLD])

    def listen(self, queues: Iterable[str], seconds: float) -> Taken | None:
        """Waits until there is something at the doorbell of one of these queues, and takes it."""
        keys = {key_of(queue): queue for queue in queues}
        with self._mending(keys):
            answer: Any = self._redis.bzpopmin(list(keys), timeout=min(max(0.01, seconds), LISTEN_SECONDS))
        return None if answer is None else _taken(keys[answer[0].decode()], *answer[1:])

    def take(self, queues: Iterable[str], count: int, *, rung: Iterable[str] = ()) -> list[Taken]:
        """Takes what is there at this moment, at most so much, the queues in this order. Leaves the rings of those of
        which it is known that they have work."""
        keys = {key_of(queue): queue for queue in queues}
        with self._mending(keys):
            answer: Any = self._take(keys=list(keys), args=[count, *(key_of(queue) for queue in rung)])
        return [_taken(keys[key.decode()], member, score) for key, member, score in answer]

    def grant(self, queue: str, priorities: Mapping[UUID, int], *, most: int = LEAST_GRANTS) -> set[UUID]:
        """Lets these jobs start, as far as no more than `most` grants lie there, whoever has given them. Returns those
        for which there was no room. A job that is granted again is still there once."""
        if not priorities:
            return set()
        job_ids = list(priorities)
        pairs = [part for job_id in job_ids for part in (f"{_GRANT}{job_id}", priorities[job_id])]
        with self._mending([key_of(queue)]):
            refused: Any = self._push_grants(keys=[key_of(queue)], args=[most, *pairs])
        return {job_ids[place] for place in refused}

    def withdraw(self, granted: Mapping[str, Collection[UUID]]) -> None:
        """Takes back what was granted, by queue, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for queue, job_ids in granted.items():
                pipeline.zrem(key_of(queue), *(f"{_GRANT}{job_id}" for job_id in job_ids))
            pipeline.execute()

    def withdraw_others(self, queues: Iterable[str], *, known: Iterable[UUID]) -> None:
        """Takes back all grants of these queues but the known ones."""
        keys = [key_of(queue) for queue in queues]
        with self._mending(keys):
            self._withdraw_others(keys=keys, args=[f"{_GRANT}{job_id}" for job_id in known])

    @contextmanager
    def _mending(self, keys: Iterable[str]) -> Iterator[None]:
        """Deletes what somebody else has put in the place of a doorbell: else nobody would ever hear it again. The
        error is raised all the same, and the next try finds it mended."""
        try:
            yield
        except redis.ResponseError as error:
            if "WRONGTYPE" in str(error):
                for key in keys:
                    if self._redis.type(key) not in (b"zset", b"none"):
                        logger.error("Redis's key %s was no doorbell: deleted.", key)
                        self._redis.delete(key)
            raise

    def granted(self, queues: Iterable[str]) -> dict[str, set[UUID]]:
        """The jobs whose grants nobody has taken yet."""
        names = list(queues)
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.zrange(key_of(name), 0, -1)
            answers = pipeline.execute()
        return {
            name: {
                job_id
                for member in members
                if member.startswith(_GRANT.encode()) and (job_id := _taken(name, member).job_id) is not None
            }
            for name, members in zip(names, answers, strict=True)
        }

    def message_counts(self, queues: Collection[str]) -> dict[str, int]:
        """How many messages each queue has in Redis, of the ledger and of Celery together, in one round trip."""
        return self.contents(queues).counts

    def contents(self, queues: Collection[str]) -> "Contents":
        """What lies in Redis, in one round trip. What is of another kind than it should be counts as empty."""
        lists = [(name, key) for name in queues for key in message_lists(name)]
        doorbells = [(name, key_of(name)) for name in (*queues, DUE, PACED)]
        with self._redis.pipeline(transaction=False) as pipeline:
            for _, key in lists:
                pipeline.llen(key)
            for _, key in doorbells:
                pipeline.zcard(key)
            answers = pipeline.execute(raise_on_error=False)
        contents = Contents(dict.fromkeys(queues, 0), [])
        for (name, key), answer in zip([*lists, *doorbells], answers, strict=True):
            if isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer):
                contents.strange_keys.append(key)
            elif isinstance(answer, Exception):
                raise answer
            elif name in contents.counts:
                contents.counts[name] += answer
        return contents


def _taken(queue: str, member: bytes, score: bytes | float = MOST_URGENT) -> Taken:
    try:
        job_id = parse_id(member.decode().removeprefix(_GRANT))
    except (InvalidJobId, UnicodeDecodeError):
        # A ring, or something of a stranger's, which is as good as one.
        job_id = None
    # A stranger's score may be any number.
    return Taken(queue, job_id, int(min(max(float(score), MOST_URGENT), LEAST_URGENT)))
