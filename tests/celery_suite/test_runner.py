"""What `bin/celery-suite` does without running Celery's tests, which take long."""

import copyreg
import logging
import subprocess
import sys
import tarfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import TracebackType

import pytest
from billiard import Queue

from devstack.home import BASE_DIR
from tests.celery_suite import outcomes
from tests.celery_suite.plugin import left_behind
from tests.celery_suite.sources import NotTheLocked, locked, sdist, unpack


def test_it_is_for_the_celery_that_is_installed() -> None:
    name, requirement = locked()
    assert name == version("celery")
    assert requirement.startswith(f"celery=={name} ")
    assert "--hash=sha256:" in requirement


def test_sources_that_are_not_those_of_the_lock_are_refused(tmp_path: Path) -> None:
    (tmp_path / f"celery-{version('celery')}.tar.gz").write_text("something else")
    with pytest.raises(NotTheLocked, match="is not what requirements-dev"):
        sdist(tmp_path)


def test_of_the_sources_it_takes_the_tests_and_no_celery(tmp_path: Path) -> None:
    archive = tmp_path / "celery-1.2.3.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for name in (
            "t/__init__.py",
            "t/integration/test_tasks.py",
            "pyproject.toml",
            "celery/__init__.py",
            "setup.py",
        ):
            member = tarfile.TarInfo(f"celery-1.2.3/{name}")
            member.size = len(name)
            packed.addfile(member, BytesIO(name.encode()))
    folder = unpack(archive, tmp_path)
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {name: name for name in ("t/__init__.py", "t/integration/test_tasks.py", "pyproject.toml")}


def test_results_that_it_does_not_know_are_refused() -> None:
    command = [sys.executable, "-m", "tests.celery_suite", "--results", "mongodb"]
    done = subprocess.run(command, check=False, cwd=BASE_DIR, capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'mongodb'" in done.stderr


def test_what_a_pool_process_logs_with_a_traceback_arrives_and_so_does_what_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, TracebackType, left_behind)
    queue = Queue()
    try:
        raise ValueError("it broke")
    except ValueError:
        queue.put(logging.LogRecord("name", logging.ERROR, "path", 1, "the first", (), sys.exc_info()))
    queue.put(logging.LogRecord("name", logging.ERROR, "path", 1, "the second", (), None))
    first, second = queue.get(timeout=10), queue.get(timeout=10)
    assert (first.msg, str(first.exc_info[1]), first.exc_info[2]) == ("the first", "it broke", None)
    assert second.msg == "the second"


def test_the_script_hands_over_to_it() -> None:
    assert 'exec .venv/bin/python -m tests.celery_suite "$@"' in (BASE_DIR / "bin" / "celery-suite").read_text()


def test_of_all_that_is_said_of_a_test_the_worst_is_its_outcome(tmp_path: Path) -> None:
    noted = tmp_path / "outcomes"
    said = {"a": ["lost", "passed"], "b": ["lost", "passed", "failed"], "c": ["lost", "skipped"], "d": ["lost"]}
    lines = [f"{outcome} t/integration/test_x.py::test_{name}" for name, each in said.items() for outcome in each]
    noted.write_text("".join(f"{line}\n" for line in lines))
    found = outcomes.read(noted)
    assert found == {
        "test_x.py::test_a": "passed",
        "test_x.py::test_b": "failed",
        "test_x.py::test_c": "skipped",
        "test_x.py::test_d": "lost",
    }
    assert outcomes.failed(found) == ["test_x.py::test_b", "test_x.py::test_d"]


def test_it_complains_of_what_the_page_does_not_say_and_of_what_it_says_wrongly() -> None:
    found = {"a": "passed", "b": "failed", "c": "lost", "d": "passed", "e": "failed", "f": "skipped", "g": "passed"}
    known = {"d": True, "e": True, "f": True, "g": False, "not run": True}
    assert outcomes.complaints(found, known) == [
        "b failed, and docs/celery.md does not say why it may",
        "c failed, and docs/celery.md does not say why it may",
        "d passed, and docs/celery.md says that it fails",
    ]


def test_the_page_names_what_differs() -> None:
    known = outcomes.differences()
    assert known["test_inspect.py::test_Inspect::test_scheduled"]
    assert not known["test_tasks.py::test_tasks::test_retry"]
