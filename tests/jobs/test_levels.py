"""What the leader remembers of lanes, over real SQL."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from jobs import below, claims
from jobs.below import Position
from jobs.dispatcher import levels as module
from jobs.dispatcher.levels import Levels
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job
from jobs.paced import Place
from tests.jobs.connections import another_connection
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import pages_read
from tests.waiting import wait_until

TASKS: dict[str, Collection[str] | None] = {"default": None}
AN_HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WALK_SECONDS", 0.0)
    monkeypatch.setattr(module, "_REST_FACTOR", 0)


def job_of(key: str, **fields: Any) -> Job:
    return make_job(rate_key=key, **fields)


def place_of(key: str, priority: int = 5) -> Place:
    return Place("default", lane_of({**dict.fromkeys(COLUMNS), "rate_key": key}), priority)


def look(levels: Levels, *, wanted: int = 10, held: dict[Place, list[Position]] | None = None) -> None:
    levels.walk({"default": False})
    levels.read({"default": wanted}, now=claims.now(), held=held or {}, tasks=TASKS)


def ids(levels: Levels, place: Place) -> list[Any]:
    return [job.job_id for job in levels.known[place].jobs] if place in levels.known else []


def slow() -> Levels:
    """As they are after some slow reads: each read begins at a floor."""
    levels = Levels()
    levels.are_slow, levels._slow_count = True, 3
    return levels


@pytest.mark.django_db
def test_each_lane_and_priority_is_a_level_whatever_letters_its_key_has() -> None:
    keys = ["a", "B", "ß", "é", "z", "日本", "\U0001f680", "[", '"', "~", " "]
    jobs = {place_of(key, priority): job_of(key, priority=priority) for key in keys for priority in (0, 9)}
    levels = Levels()
    look(levels, wanted=100)
    assert {place: ids(levels, place) for place in jobs} == {place: [job.pk] for place, job in jobs.items()}
    # Known levels are left out of the next walk, and new ones between them are found.
    new = {place_of(key): job_of(key) for key in ("aa", "é1", "日")}
    look(levels, wanted=100)
    assert {place: ids(levels, place) for place in new} == {place: [job.pk] for place, job in new.items()}


@pytest.mark.django_db
def test_a_walk_in_pieces_finds_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GAPS_AT_ONCE", 7)
    for number in range(40):
        job_of(f"key {number}")
    levels = Levels()
    pieces = 0
    while not levels.is_walked:
        levels.walk({"default": False})
        pieces += 1
    assert len(levels.known) == 40
    assert 6 <= pieces <= 12


@pytest.mark.django_db
def test_a_level_of_which_nothing_is_left_is_forgotten_and_found_again() -> None:
    job = job_of("t")
    levels = Levels()
    look(levels)
    Job.objects.filter(pk=job.pk).update(state="cancelled", finished_at=Now())
    levels.known[place_of("t")].jobs.clear()
    look(levels)
    assert not levels.known
    again = job_of("t")
    look(levels)
    assert ids(levels, place_of("t")) == [again.pk]


@pytest.mark.django_db
def test_a_named_job_is_known_at_once_in_its_order_and_only_if_workers_know_its_task() -> None:
    levels = Levels()
    first, second = job_of("t"), job_of("t")
    levels.hear([second.pk, first.pk], TASKS)
    assert ids(levels, place_of("t")) == [first.pk, second.pk]
    other, ended = job_of("u", task="unknown.task"), job_of("v", state="cancelled", finished_at=Now())
    levels.hear([other.pk, ended.pk], {"default": {"known.task"}})
    assert list(levels.known) == [place_of("t")]


@pytest.mark.django_db
def test_where_reads_are_slow_a_late_job_is_found_by_its_name_and_without_it_by_the_walk_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_PIECE_SECONDS", 3600)
    levels = slow()
    job_of("t")
    look(levels)
    levels.known[place_of("t")].jobs.clear()
    named, lost = (job_of("t", run_at=Now() - AN_HOUR) for _ in range(2))
    levels.hear([named.pk], TASKS)
    assert ids(levels, place_of("t")) == [named.pk]
    levels.known[place_of("t")].floor = Position(claims.now())
    levels.known[place_of("t")].jobs.clear()
    levels.doubt()
    look(levels)
    assert lost.pk not in ids(levels, place_of("t"))
    levels.known[place_of("t")].jobs.clear()
    for _ in range(20):
        levels._walk_below._at = 0.0
        levels.look_below(TASKS)
    look(levels)
    assert lost.pk in ids(levels, place_of("t"))


@pytest.mark.django_db
def test_of_a_transaction_that_took_long_one_name_leads_to_all_of_its_jobs() -> None:
    levels = slow()
    for key in "tu":
        job_of(key)
    look(levels)
    late = {key: job_of(key, run_at=Now() - AN_HOUR) for key in "tu"}
    levels.hear([late["t"].pk], TASKS)
    for known in levels.known.values():
        known.jobs.clear()
    look(levels)
    for key in "tu":
        assert late[key].pk in ids(levels, place_of(key))


@pytest.mark.django_db
def test_where_nothing_is_left_to_walk_over_reads_begin_at_the_head_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_NOISE_SECONDS", 3600)
    levels = slow()
    job_of("t")
    look(levels)

    def is_over() -> bool:
        levels._walk_below._at = 0.0
        levels.look_below(TASKS)
        return not levels.are_slow

    wait_until(is_over)


@pytest.mark.django_db
def test_a_floor_is_below_what_waits_and_what_has_a_grant() -> None:
    levels = slow()
    old, new = job_of("t", run_at=Now() - AN_HOUR), job_of("t")
    look(levels)
    held = {place_of("t"): [job for job in levels.known[place_of("t")].jobs if job.job_id == old.pk]}
    levels.known[place_of("t")].jobs.clear()
    levels.known[place_of("t")].is_all = False
    look(levels, held=held)
    assert ids(levels, place_of("t")) == [new.pk]
    assert levels.known[place_of("t")].floor == Position(run_at(old), old.pk)
    levels.known[place_of("t")].is_all = False
    levels.known[place_of("t")].jobs.clear()
    look(levels)
    assert ids(levels, place_of("t")) == [old.pk, new.pk]


@pytest.mark.django_db
def test_a_floor_passes_over_jobs_that_had_a_grant_and_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_PIECE_SECONDS", 3600)
    place, levels = place_of("t"), slow()
    begin = claims.now() - AN_HOUR
    jobs = [job_of("t", run_at=begin + number * timedelta(minutes=1)) for number in range(4)]
    look(levels)

    def read() -> None:
        levels.known[place].read_at = 0.0
        look(levels)

    # Two that somebody has locked: their grants were taken, and they wait.
    for known in levels.known[place].jobs[:2]:
        levels.taken(place, known)
        levels.given_back(place, known)
    read()
    assert levels.known[place].floor == Position(begin + timedelta(minutes=2), jobs[2].pk)
    assert ids(levels, place) == [job.pk for job in jobs]
    # Those behind them end: what they leave is not walked over, and a walk below the floor does not bring it back.
    for job in jobs[2:]:
        Job.objects.filter(pk=job.pk).update(state="cancelled", finished_at=Now())
    read()
    assert levels.known[place].floor > Position(begin + timedelta(minutes=4))
    levels.look_below(TASKS)
    for _ in range(20):
        levels._walk_below._at = 0.0
        levels.look_below(TASKS)
    assert levels.known[place].floor > Position(begin + timedelta(minutes=4))
    # One of them holds a grant, the other is gone.
    held = {place: levels.known[place].jobs[1:2]}
    levels.known[place].jobs.clear()
    Job.objects.filter(pk=jobs[0].pk).update(state="cancelled", finished_at=Now())
    levels.known[place].read_at = 0.0
    look(levels, held=held)
    assert ids(levels, place) == []
    assert {job.job_id for job in levels.known[place].passed} == {jobs[1].pk}
    # A late one beside them is found by the walk.
    late = job_of("t", run_at=begin + timedelta(seconds=90))
    for _ in range(40):
        levels._walk_below._at = 0.0
        levels.look_below(TASKS)
    read()
    assert ids(levels, place) == [jobs[1].pk, late.pk]


@pytest.mark.django_db
def test_a_floor_passes_over_no_more_than_some() -> None:
    place, levels = place_of("t"), slow()
    begin = claims.now() - AN_HOUR
    jobs = [job_of("t", run_at=begin + number * timedelta(minutes=1)) for number in range(module.MOST_PASSED + 2)]
    look(levels, wanted=100)
    for known in levels.known[place].jobs[: module.MOST_PASSED + 1]:
        levels.taken(place, known)
        levels.given_back(place, known)
    levels.known[place].read_at = 0.0
    look(levels, wanted=1)
    assert levels.known[place].floor.job_id == jobs[module.MOST_PASSED].pk
    assert ids(levels, place) == [job.pk for job in jobs]


def run_at(job: Job) -> datetime:
    return Job.objects.values_list("run_at", flat=True).get(pk=job.pk)


@pytest.mark.django_db(transaction=True)
def test_beside_an_old_snapshot_a_look_costs_the_same_however_many_jobs_have_run() -> None:
    worker = make_worker()
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM jobs_job")
        levels = slow()
        pages = [pages_of_a_look(levels)]
        for _ in range(2):
            for number in range(400):
                job = job_of(f"key {number % 4}", run_at=Now() - timedelta(seconds=30))
                [run] = claims.claim({job.pk: str(job.pk)}, worker_id=worker.pk)
                claims.complete({job.pk: (run.token, None)})
            for number in range(4):
                job_of(f"key {number}")
            pages.append(pages_of_a_look(levels))
            # The next one begins where the last one has found nothing earlier.
            pages.append(pages_of_a_look(levels))
        other.commit()
    assert pages[4] <= pages[2] + 20
    assert {place: len(known.jobs) for place, known in levels.known.items()} == {
        place_of(f"key {number}"): 2 for number in range(4)
    }


def pages_of_a_look(levels: Levels) -> int:
    for known in levels.known.values():
        known.read_at, known.is_all = 0.0, False
    with CaptureQueriesContext(connection) as queries:
        look(levels, wanted=100)
    return sum(pages_read(query["sql"]) for query in queries if "jobs_job" in query["sql"])
