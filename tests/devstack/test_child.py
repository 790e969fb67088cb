"""One supervised process, without the stack around it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devstack.child import Child
from devstack.launch import Launch
from devstack.program import Program, Stage
from tests.waiting import wait_until

WAITS = "import signal; signal.pause()"
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
WITH_A_CHILD = """
import signal, subprocess
subprocess.Popen(["sleep", "600"])
print("forked", flush=True)
signal.pause()
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.stop()
        child.kill()
        wait_until(lambda child=child: ticks(child, "stopped"))  # type: ignore[misc]  # bound now, not later


def program(code: str, *, grace_seconds: float = 10) -> Program:
    return Program(
        name="sample",
        launch=lambda: Launch(argv=[sys.executable, "-c", code], folder=Path("/")),
        is_ready=lambda _: True,
        stage=Stage.WORK,
        where="",
        grace_seconds=grace_seconds,
    )


def start(children: list[Child], tmp_path: Path, code: str, *, grace_seconds: float = 10) -> Child:
    child = Child(program(code, grace_seconds=grace_seconds), home=tmp_path, log=tmp_path / "sample.log")
    children.append(child)
    child.start()
    return child


def ticks(child: Child, state: str) -> bool:
    child.tick()
    return child.state == state


def test_a_process_that_was_killed_starts_again(children: list[Child], tmp_path: Path) -> None:
    child = start(children, tmp_path, WAITS)
    wait_until(lambda: ticks(child, "running"))
    first = child.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: ticks(child, "restarting"))
    assert child.last_end.startswith("sample ended by SIGKILL")
    wait_until(lambda: ticks(child, "running"))
    assert child.pid != first


def test_what_is_left_of_a_dead_processs_group_is_swept(children: list[Child], tmp_path: Path) -> None:
    child = start(children, tmp_path, WITH_A_CHILD)
    wait_until(lambda: "forked" in child.log.read_text())
    assert child.pid
    [orphan] = psutil.Process(child.pid).children()
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: ticks(child, "restarting"))
    wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(children: list[Child], tmp_path: Path) -> None:
    child = start(children, tmp_path, DEAF, grace_seconds=0.2)
    wait_until(lambda: "deaf" in child.log.read_text())
    child.stop()
    wait_until(lambda: ticks(child, "stopped"))
    assert child.pid is None


def test_a_process_that_keeps_dying_is_started_less_and_less_often(children: list[Child], tmp_path: Path) -> None:
    child = start(children, tmp_path, "raise SystemExit(3)")
    news: list[str] = []

    def ended_three_times() -> bool:
        if said := child.tick():
            news.append(said)
        return child.exits == 3

    wait_until(ended_three_times)
    pauses = [line.rpartition(" starts again in ")[2] for line in news if "starts again" in line]
    assert pauses == ["0.25 s", "0.5 s", "1 s"]
    assert "with status 3" in news[0]
