"""Messages in Redis that are no jobs and become none: put aside, so that they stop nobody and nothing is lost.

They come from other producers: what is no JSON, what names no task, what a task does not take. The newest are kept, at
most a thousand and 1 MiB of them; of one that is larger than 256 KiB, the beginning is. `manage.py jobs dead-letters`
shows them, and puts them back.
"""

import base64
import json
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import redis
from celery import current_app
from django.utils import timezone

from jobs.bounds import shortened
from jobs.doorbell import REDIS_AWAY, client_within, message_lists

logger = logging.getLogger(__name__)

MOST_MESSAGES = 1000
MOST_BYTES = 1024 * 1024
# A larger one would leave no room for others: so much of it is kept.
MOST_OF_ONE_BYTES = 256 * 1024
_BEGINNING_BYTES = 16 * 1024
# The worker's main thread waits for no longer.
_PATIENCE_SECONDS = 0.3
_SHOWN_BYTES = 200
_WHY_BYTES = 500
# What somebody's message may raise in kombu and in Celery, before it is one.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_KEEP = """
local left, kept = tonumber(ARGV[3]), 0
if #ARGV[1] > left then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
for place, letter in ipairs(redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)) do
    left = left - #letter
    if left < 0 then break end
    kept = place
end
redis.call('LTRIM', KEYS[1], 0, kept - 1)
return kept
"""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message as it lay in a Redis list, when it was put aside, and why; and how many bytes of it were left out."""

    redis_list: str
    at: datetime
    why: str
    message: bytes
    left_out_bytes: int = 0

    def as_json(self) -> str:
        """As Redis keeps it."""
        return json.dumps(
            {
                "list": self.redis_list,
                "at": self.at.timestamp(),
                "why": self.why,
                "message": base64.b64encode(self.message).decode(),
                "left_out": self.left_out_bytes,
            }
        )

    @classmethod
    def of(cls, text: bytes) -> Self:
        """What `as_json` was made of."""
        kept = json.loads(text)
        return cls(
            redis_list=kept["list"],
            at=datetime.fromtimestamp(kept["at"], UTC),
            why=kept["why"],
            message=base64.b64decode(kept["message"]),
            left_out_bytes=kept.get("left_out", 0),
        )

    @property
    def is_cut(self) -> bool:
        """Whether only its beginning was kept."""
        return self.left_out_bytes > 0

    @property
    def beginning(self) -> str:
        """The message as text, shortened."""
        text = shortened(self.message.decode("utf-8", "backslashreplace"), _SHOWN_BYTES)
        return f"{text}\n… and {self.left_out_bytes:,} bytes that were not kept" if self.is_cut else text


class _Kept(threading.local):
    """How many this thread has put aside."""

    count = 0


_kept = _Kept()


def keep(redis_list: str, message: bytes, why: str) -> None:
    """Puts a message aside, or its beginning where it is too large; never raises. Where Redis does not take it, its
    beginning is in the log."""
    _kept.count += 1
    beginning = message if len(message) <= MOST_OF_ONE_BYTES else message[:_BEGINNING_BYTES]
    letter = DeadLetter(
        redis_list=redis_list,
        at=timezone.now(),
        why=shortened(why, _WHY_BYTES),
        message=beginning,
        left_out_bytes=len(message) - len(beginning),
    )
    logger.error(
        "A message in Redis's list %s is no job (%s). %s put aside: see manage.py jobs dead-letters.",
        redis_list,
        letter.why,
        f"It is too large: {letter.left_out_bytes:,} bytes are left out, its beginning is"
        if letter.is_cut
        else "It is",
    )
    try:
        with _client() as client:
            arguments = [letter.as_json(), MOST_MESSAGES, MOST_BYTES]
            if not client.register_script(_KEEP)(keys=[_key()], args=arguments):
                logger.error("It could not be put aside, it is too large: %s", letter.beginning)
    except REDIS_AWAY as error:
        logger.error("It could not be put aside (%s): %s", error, letter.beginning)


def count() -> int:
    """How many there are. Raises one of `REDIS_AWAY`."""
    with _client() as client:
        return int(client.llen(_key()))


def letters() -> list[DeadLetter]:
    """All of them, the oldest first. Raises one of `REDIS_AWAY`."""
    with _client() as client:
        return [DeadLetter.of(text) for text in reversed(client.lrange(_key(), 0, -1))]


def put_back() -> int:
    """Puts all of them back to where they lay, the oldest first; returns how many. Those of which only the beginning
    was kept stay. Raises one of `REDIS_AWAY`."""
    with _client() as client:
        texts = [text for text in reversed(client.lrange(_key(), 0, -1)) if not DeadLetter.of(text).is_cut]
        for text in texts:
            letter = DeadLetter.of(text)
            with client.pipeline(transaction=True) as both:
                both.lpush(letter.redis_list, letter.message)
                both.lrem(_key(), -1, text)
                both.execute()
    return len(texts)


def drop() -> int:
    """Removes all of them for good; returns how many. Raises one of `REDIS_AWAY`."""
    with _client() as client:
        found = int(client.llen(_key()))
        # The newest are in front: what has come meanwhile stays.
        client.ltrim(_key(), 0, -found - 1)
    return found


def guard(transport: Any) -> None:
    """Lets the channels that a transport of kombu's opens from now on put what they cannot read aside: else it ends the
    worker, and the next one. What is broadcast, as remote commands and events are, lies nowhere: it is passed over.

    Twice is as good as once.
    """
    open_channel = transport.create_channel
    if hasattr(open_channel, "is_guarded"):
        return

    def open_guarded(connection: Any) -> Any:
        channel = open_channel(connection)
        _guard_lists(channel)
        _guard_broadcasts(channel)
        return channel

    open_guarded.is_guarded = True  # type: ignore[attr-defined]
    transport.create_channel = open_guarded


def _guard_broadcasts(channel: Any) -> None:
    receive = channel._receive_one

    def receive_or_pass_over(client: Any) -> Any:
        try:
            return receive(client)
        except _MALFORMED as error:
            logger.error("What was broadcast is no message (%s: %s): it is passed over.", type(error).__name__, error)
            return None

    channel._receive_one = receive_or_pass_over


def _guard_lists(channel: Any) -> None:
    client = channel.client
    read, parse = channel.handlers["BRPOP"], client.parse_response
    answer: list[Any] = []

    def remember(connection: Any, command: str, **options: Any) -> Any:
        found = parse(connection, command, **options)
        if command == "BRPOP":
            answer[:] = [found]
        return found

    def read_or_put_aside(**options: Any) -> Any:
        answer.clear()
        # Celery may have put it aside itself, and fail all the same.
        kept_before, taken_before = _kept.count, set(channel.qos._delivered)
        try:
            return read(**options)
        except _MALFORMED as error:
            if not answer or not answer[0]:
                raise
            redis_list, message = answer[0]
            if _kept.count == kept_before:
                keep(redis_list.decode(), message, f"{type(error).__name__}: {error}")
            for tag in set(channel.qos._delivered) - taken_before:
                channel.qos.ack(tag)
            return True

    client.parse_response = remember
    channel.handlers["BRPOP"] = read_or_put_aside


def keep_read(message: Any, why: str) -> None:
    """Puts a message of kombu's aside that was read, and is no job all the same."""
    info = message.delivery_info or {}
    queue, priority = str(info.get("routing_key")), (message.properties or {}).get("priority") or 0
    # Whoever sent it may have written anything.
    lists = message_lists(queue if queue in current_app.amqp.queues else "default")
    place = priority if isinstance(priority, int) and 0 <= priority < len(lists) else 0
    raw = getattr(message, "_raw", None) or {"headers": message.headers, "body": message.body}
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError, RecursionError):
        text = repr(raw)
    keep(lists[place], text.encode("utf-8", "backslashreplace"), why)


def _key() -> str:
    prefix = current_app.conf.broker_transport_options.get("global_keyprefix", "")
    return f"{prefix}handoff:dead-letters"


def _client() -> "redis.Redis":
    return client_within(_PATIENCE_SECONDS)
