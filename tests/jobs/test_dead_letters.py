"""Messages that are no jobs: kept within bounds, shown, put back."""

import json
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from typing import Any

import pytest
import redis
from celery import current_app
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError

from devstack.throwaway import Server
from jobs import dead_letters

pytestmark = [pytest.mark.usefixtures("empty_redis"), pytest.mark.django_db]


@pytest.fixture
def broker() -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


def jobs(*arguments: str) -> str:
    out = StringIO()
    call_command("jobs", *arguments, stdout=out)
    return out.getvalue()


def test_a_thousand_are_kept_the_newest() -> None:
    for number in range(1100):
        dead_letters.keep("default", str(number).encode(), "odd")
    kept = dead_letters.letters()
    assert [int(one.message) for one in kept] == list(range(100, 1100))
    assert dead_letters.count() == 1000


def test_a_mebibyte_is_kept(broker: "redis.Redis") -> None:
    for _ in range(40):
        dead_letters.keep("default", b"x" * 50_000, "odd")
    assert 10 <= dead_letters.count() < 16
    assert 900_000 < sum(len(text) for text in broker.lrange(dead_letters._key(), 0, -1)) <= 1024 * 1024


def test_one_that_is_too_large_leaves_the_others_there_and_its_beginning_is_kept(
    broker: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(52):
        dead_letters.keep("default", str(number).encode(), "odd")
    caplog.clear()
    dead_letters.keep("default", b"the beginning" + b"x" * 3_000_000, "too large")
    assert "It is too large: 2,983,629 bytes are left out, its beginning is put aside" in caplog.text
    assert [one.message for one in dead_letters.letters()[:52]] == [str(number).encode() for number in range(52)]
    large = dead_letters.letters()[52]
    assert (large.message[:13], len(large.message), large.left_out_bytes) == (b"the beginning", 16_384, 2_983_629)
    assert "2,983,629 bytes that were not kept" in jobs("dead-letters")
    with pytest.raises(CommandError, match="Not put back: 1, of which only the beginning was kept") as refused:
        jobs("dead-letters", "--return")
    assert refused.value.returncode == 1
    assert (broker.llen("default"), dead_letters.count()) == (52, 1)
    assert jobs("dead-letters", "--drop") == "Removed: 1 messages.\n"


def test_whatever_a_message_says_of_where_it_belongs_it_can_be_put_back(broker: "redis.Redis") -> None:
    routing_keys: list[Any] = ["x" * 2_000_000, "\ud800", [[]], {}, None, "nobodys"]
    for routing_key in routing_keys:
        info = {"delivery_info": {"routing_key": routing_key}, "delivery_tag": "1"}
        raw = {"properties": info, "body": "", "headers": {}}
        with current_app.connection_for_read() as connection:
            dead_letters.keep_read(connection.default_channel.Message(raw, channel=None), "odd")
    assert {one.redis_list for one in dead_letters.letters()} == {"default"}
    with suppress(CommandError):
        jobs("dead-letters", "--return")
    assert broker.llen("default") == 5


def test_they_are_shown_and_put_back_as_they_were(broker: "redis.Redis") -> None:
    assert jobs("dead-letters") == "No message was put aside.\n"
    odd = b"\xff\xfe\0{"
    dead_letters.keep("default:3", odd, "ValueError: odd")
    dead_letters.keep("default", b"{}", "KeyError: 'properties'")
    shown = jobs("dead-letters")
    assert "default:3" in shown
    assert "KeyError: 'properties'" in shown
    assert [json.loads(line)["list"] for line in jobs("dead-letters", "--json").splitlines()] == [
        "default:3",
        "default",
    ]
    assert jobs("dead-letters", "--return") == "Put back: 2 messages.\n"
    assert (broker.lrange("default:3", 0, -1), broker.lrange("default", 0, -1)) == ([odd], [b"{}"])
    assert dead_letters.count() == 0


def test_they_can_be_removed(broker: "redis.Redis") -> None:
    dead_letters.keep("default", b"{}", "odd")
    assert jobs("dead-letters", "--drop") == "Removed: 1 messages.\n"
    assert broker.keys() == []


def test_what_is_put_aside_while_others_are_removed_stays(
    broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_letters.keep("default", b"old", "odd")
    count = redis.Redis.llen

    def count_and_let_one_come(client: "redis.Redis", name: str) -> Any:
        found = count(client, name)
        monkeypatch.undo()
        dead_letters.keep("default", b"new", "odd")
        return found

    monkeypatch.setattr(redis.Redis, "llen", count_and_let_one_come)
    assert dead_letters.drop() == 1
    assert [one.message for one in dead_letters.letters()] == [b"new"]


def test_without_redis_a_message_is_in_the_log_and_the_command_says_so(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.stop()
    dead_letters.keep("default", b"the beginning of it", "odd")
    with pytest.raises(CommandError, match="Redis does not answer"):
        jobs("dead-letters")
    assert "the beginning of it" in caplog.text
