"""What Redis holds for the ledger, on a real Redis."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from celery import current_app
from django.conf import settings

from devstack.throwaway import Server
from jobs.doorbell import DUE, MOST_NAMED, MOST_TOLD, PACED, REDIS_AWAY, RING, Doorbell, Taken, key_of, message_lists
from jobs.ids import new_id
from jobs.models import Job
from jobs.publish import Ring
from jobs.queues import QUEUES
from tests.sample_tasks import add


@pytest.fixture
def broker(empty_redis: None) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


@pytest.fixture
def doorbell(empty_redis: None) -> Iterator[Doorbell]:
    doorbell = Doorbell.patient()
    yield doorbell
    doorbell.close()


# -- Rings -------------------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
def test_however_many_jobs_are_enqueued_and_by_whomever_one_ring_is_there(
    doorbell: Doorbell, broker: "redis.Redis"
) -> None:
    def push(priority: int) -> None:
        for _ in range(20):
            Ring("default", priority).send(doorbell)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(push, range(4)))
    for priority in range(10):
        add.apply_async((1, 2), priority=priority)
    assert broker.zrange(key_of("default"), 0, -1) == [RING.encode()]
    assert broker.keys() == [key_of("default").encode()]


@pytest.mark.parametrize("ask", ["listen", "take", "grant"])
def test_what_is_no_doorbell_in_its_place_is_deleted(doorbell: Doorbell, broker: "redis.Redis", ask: str) -> None:
    broker.set(key_of("default"), "a stranger's")
    asks: dict[str, Any] = {
        "listen": lambda: doorbell.listen(["images", "default"], 0.1),
        "take": lambda: doorbell.take(["images", "default"], 5),
        "grant": lambda: doorbell.grant("default", {uuid4(): 5}),
    }
    with pytest.raises(REDIS_AWAY):
        asks[ask]()
    doorbell.ring("default", 5)
    assert doorbell.listen(["default"], 1) == Taken("default", None)


def test_a_ring_wakes_one_listener_of_its_queue(doorbell: Doorbell) -> None:
    doorbell.ring("images", 5)
    assert doorbell.listen(["default", "images"], 1) == Taken("images", None)
    assert doorbell.listen(["default", "images"], 0) is None


def test_of_two_that_listen_already_each_ring_wakes_one(doorbell: Doorbell) -> None:
    with ThreadPoolExecutor(2) as threads:
        listeners = {threads.submit(listen_until_heard) for _ in range(2)}
        while listeners:
            doorbell.ring("default", 5)
            heard, listeners = wait(listeners, timeout=30, return_when=FIRST_COMPLETED)
            assert [listener.result() for listener in heard] == [Taken("default", None)]


def listen_until_heard() -> Taken:
    doorbell = Doorbell.patient()
    while (taken := doorbell.listen(["email", "default"], 1)) is None:
        pass
    doorbell.close()
    return taken


def test_those_who_lead_are_woken_apart_from_each_other_and_from_workers(doorbell: Doorbell) -> None:
    for _ in range(3):
        doorbell.wake(DUE)
    assert doorbell.message_counts(QUEUES) == dict.fromkeys(QUEUES, 0)
    assert not doorbell.listen([PACED], 0)
    assert doorbell.listen([DUE], 1)
    assert not doorbell.listen([DUE], 0)


@pytest.mark.parametrize(
    ("fields", "rung"),
    [
        ({}, "default"),
        ({"queue": "images"}, "images"),
        ({"queue": "email"}, PACED),
        ({"lane": "of its own"}, PACED),
    ],
)
def test_the_leader_hears_of_a_waiting_job_with_limits_and_workers_of_one_without(
    doorbell: Doorbell, broker: "redis.Redis", fields: dict[str, Any], rung: str
) -> None:
    Ring.of(Job(**{"task": "t", "queue": "default", "state": "waiting", **fields})).send(doorbell)
    assert broker.keys() == [key_of(rung).encode()]


# -- Grants ------------------------------------------------------------------------------------------------------------
def test_grants_are_taken_the_most_urgent_first_and_none_twice(doorbell: Doorbell) -> None:
    ids = [uuid4() for _ in range(10)]
    doorbell.grant("email", {job_id: 9 - place for place, job_id in enumerate(ids)})
    assert doorbell.granted(["email", "crm"]) == {"email": set(ids), "crm": set()}
    assert [taken.job_id for taken in doorbell.take(["email"], 4)] == ids[:5:-1]
    assert doorbell.granted(["email"]) == {"email": set(ids[:6])}
    assert [taken.job_id for taken in doorbell.take(["email"], 100)] == ids[5::-1]
    assert doorbell.take(["email"], 100) == []


def test_a_job_that_is_granted_again_is_there_once_by_its_last_priority(doorbell: Doorbell) -> None:
    job_id, other = uuid4(), uuid4()
    doorbell.grant("email", {job_id: 9, other: 5})
    doorbell.grant("email", {job_id: 0})
    assert doorbell.take(["email"], 100) == [Taken("email", job_id), Taken("email", other)]


def test_no_grants_are_none(doorbell: Doorbell, broker: "redis.Redis") -> None:
    doorbell.grant("email", {})
    assert broker.keys() == []


def test_what_is_there_is_taken_queue_by_queue_in_the_order_of_the_caller(doorbell: Doorbell) -> None:
    email, crm = uuid4(), uuid4()
    doorbell.grant("email", {email: 9})
    doorbell.grant("crm", {crm: 0})
    doorbell.ring("default", 0)
    assert doorbell.take(["email", "crm", "default"], 2) == [Taken("email", email), Taken("crm", crm)]
    assert doorbell.take(["email", "crm", "default"], 2) == [Taken("default", None)]


def test_a_ring_and_grants_share_a_doorbell(doorbell: Doorbell) -> None:
    job_id = uuid4()
    doorbell.ring("default", 5)
    doorbell.grant("default", {job_id: 1})
    assert doorbell.granted(["default"]) == {"default": {job_id}}
    assert doorbell.listen(["default"], 1) == Taken("default", job_id)
    assert doorbell.listen(["default"], 1) == Taken("default", None)


def test_of_many_takers_each_grant_goes_to_one(doorbell: Doorbell) -> None:
    ids = {uuid4() for _ in range(200)}
    doorbell.grant("email", dict.fromkeys(ids, 5), most=200)

    def take_all(_: int) -> list[UUID | None]:
        own, found = Doorbell.patient(), []
        while taken := own.take(["email"], 3):
            found += [one.job_id for one in taken]
        own.close()
        return found

    with ThreadPoolExecutor(4) as threads:
        taken = [job_id for found in threads.map(take_all, range(4)) for job_id in found]
    assert len(taken) == 200
    assert set(taken) == ids


def test_grants_are_bounded_whoever_gives_them_and_leave_rings_and_named_jobs_alone(doorbell: Doorbell) -> None:
    named = {uuid4() for _ in range(MOST_NAMED)}
    doorbell.ring("email", 5)
    for job_id in named:
        doorbell.ring_for("email", job_id, 5)

    def grant(_: int) -> int:
        own = Doorbell.patient()
        refused = own.grant("email", {uuid4(): 3 for _ in range(30)}, most=40)
        own.close()
        return 30 - len(refused)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(grant, range(4))) == 40
    assert len(doorbell.granted(["email"])["email"]) == 40
    taken = {one.job_id for one in doorbell.take(["email"], 100)}
    assert len(taken) == 40 + MOST_NAMED
    assert len(named - taken) == 1, "the ring was there, and counts among those that are named"
    assert None in taken


def test_where_there_is_no_room_what_is_granted_already_may_change_its_priority(doorbell: Doorbell) -> None:
    first, other, new = uuid4(), uuid4(), uuid4()
    assert doorbell.grant("email", {first: 9, other: 5}, most=2) == set()
    assert doorbell.grant("email", {new: 0, first: 1}, most=2) == {new}
    assert doorbell.take(["email"], 100) == [Taken("email", first), Taken("email", other)]


def test_what_is_not_known_is_taken_back(doorbell: Doorbell) -> None:
    known, unknown, named = uuid4(), uuid4(), uuid4()
    doorbell.grant("email", {known: 5, unknown: 5})
    doorbell.grant("crm", {uuid4(): 5})
    doorbell.ring_for("email", named, 5)
    doorbell.withdraw_others(["email", "crm", "default"], known=[known])
    assert doorbell.granted(["email", "crm"]) == {"email": {known}, "crm": set()}
    assert {taken.job_id for taken in doorbell.take(["email"], 10)} == {known, named}


# -- Strangers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("member", [b"not an id", b"\xff\xfe", b"", "ä".encode()])
def test_a_member_that_the_ledger_did_not_write_is_as_good_as_a_ring(
    doorbell: Doorbell, broker: "redis.Redis", member: bytes
) -> None:
    broker.zadd(key_of("default"), {member: 3})
    assert doorbell.granted(["default"]) == {"default": set()}
    assert doorbell.take(["default"], 10) == [Taken("default", None)]


def test_messages_of_celerys_own_are_counted_with_what_is_the_ledgers(
    doorbell: Doorbell, broker: "redis.Redis"
) -> None:
    doorbell.ring("default", 5)
    doorbell.grant("default", {uuid4(): 5})
    for name in message_lists("default")[:2]:
        broker.rpush(name, b"a message", b"another")
    assert doorbell.message_counts(["default", "email"]) == {"default": 6, "email": 0}


def test_what_is_of_another_kind_is_named_and_counts_as_empty(doorbell: Doorbell, broker: "redis.Redis") -> None:
    doorbell.ring("default", 5)
    broker.set("default:3", "a stranger's")
    broker.set(key_of("video"), "a stranger's")
    broker.lpush(key_of(DUE), "a stranger's")
    contents = doorbell.contents(QUEUES)
    assert contents.counts == {**dict.fromkeys(QUEUES, 0), "default": 1}
    assert contents.strange_keys == ["default:3", key_of("video"), key_of(DUE)]
    assert [sentence.rpartition(": ")[2] for sentence in contents.sentences] == [
        f"redis-cli DEL {key}" for key in contents.strange_keys
    ]


def test_a_prefix_of_the_brokers_keys_holds_for_all_of_the_ledgers(
    doorbell: Doorbell, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(current_app.conf.broker_transport_options, "global_keyprefix", "shop:")
    job_id = uuid4()
    doorbell.ring("default", 5)
    doorbell.grant("email", {job_id: 5})
    doorbell.wake(DUE)
    keys: Any = broker.keys()
    assert sorted(keys) == [b"shop:handoff:leader:due", b"shop:handoff:queue:default", b"shop:handoff:queue:email"]
    assert message_lists("default")[:2] == ["shop:default", "shop:default:1"]
    assert doorbell.message_counts(["default"]) == {"default": 1}
    assert doorbell.granted(["email"]) == {"email": {job_id}}
    assert doorbell.take(["default", "email"], 5) == [Taken("default", None), Taken("email", job_id)]
    assert doorbell.listen([DUE], 1)


# -- Redis away --------------------------------------------------------------------------------------------------------
def test_every_step_at_a_redis_that_hangs_ends_in_an_error_of_its_own(redis_server: Server) -> None:
    doorbell = Doorbell.within(0.2)
    redis_server.freeze()
    for step in (
        lambda: doorbell.ring("default", 5),
        lambda: doorbell.wake(DUE),
        lambda: doorbell.listen(["default"], 0.1),
        lambda: doorbell.take(["default"], 1),
        lambda: doorbell.grant("email", {uuid4(): 5}),
        lambda: doorbell.granted(["email"]),
        lambda: doorbell.withdraw_others(["email"], known=[]),
        lambda: doorbell.message_counts(["email"]),
    ):
        with pytest.raises(REDIS_AWAY):
            step()
    doorbell.close()


def test_a_redis_that_was_restarted_is_spoken_to_again(redis_server: Server) -> None:
    doorbell = Doorbell.patient()
    doorbell.ring("default", 5)
    assert len(doorbell.take(["default"], 1)) == 1
    redis_server.restart()
    for _ in range(2):
        # The first may find that its connection is gone.
        try:
            doorbell.ring("default", 5)
        except REDIS_AWAY:
            continue
    assert doorbell.take(["default"], 1) == [Taken("default", None)]
    doorbell.close()


@pytest.mark.parametrize("count", [5, 40])
def test_jobs_that_are_named_are_bounded_whoever_names_them(doorbell: Doorbell, count: int) -> None:
    for _ in range(count):
        doorbell.ring_for("default", new_id(), 5)
    taken = doorbell.take(["default"], 100)
    named = [one.job_id for one in taken if one.job_id is not None]
    assert len(named) == min(count, MOST_NAMED)
    assert len(taken) - len(named) == int(count > MOST_NAMED)


def test_jobs_that_are_named_to_the_leader_are_bounded_whoever_names_them(doorbell: Doorbell) -> None:
    for _ in range(100):
        for _ in range(MOST_TOLD // 10):
            doorbell.tell(new_id())
    taken = doorbell.take([PACED], 100 * MOST_TOLD)
    assert len(taken) == MOST_TOLD + 1
    assert sum(one.job_id is None for one in taken) == 1


def test_rings_of_queues_that_are_known_to_have_work_stay(doorbell: Doorbell) -> None:
    job_id = new_id()
    for queue in ("default", "webhooks"):
        doorbell.ring(queue, 3)
    doorbell.grant("default", {job_id: 7})
    assert doorbell.take(["default", "webhooks"], 10, rung=["default"]) == [
        Taken("default", job_id),
        Taken("webhooks", None),
    ]
    assert doorbell.take(["default"], 10) == [Taken("default", None)]


def test_a_ring_that_stays_hides_no_grant_that_is_less_urgent(doorbell: Doorbell) -> None:
    job_id = new_id()
    doorbell.ring("default", 3)
    doorbell.grant("default", {job_id: 7})
    assert doorbell.take(["default"], 1, rung=["default"]) == [Taken("default", job_id)]
    assert doorbell.take(["default"], 1, rung=["default"]) == []
    assert doorbell.take(["default"], 1) == [Taken("default", None)]


@pytest.mark.parametrize("take", ["take", "listen"])
def test_what_is_taken_says_how_urgent_it_is_whatever_strangers_have_put_there(
    doorbell: Doorbell, broker: "redis.Redis", take: str
) -> None:
    for score, priority in ((7, 7), (-3, 0), ("inf", 9), (1e300, 9), ("-inf", 0)):
        broker.zadd(key_of("default"), {str(new_id()): score})
        taken = doorbell.listen(["default"], 1) if take == "listen" else doorbell.take(["default"], 1)[0]
        assert taken is not None
        assert taken.priority == priority
