"""The scripts in `bin/`, where they do more than hand over."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.home import BASE_DIR

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without any Python, on the PATH or of pyenv."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or name)
    return {"PATH": str(programs), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}


def run(*command: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=False, cwd=BASE_DIR, env=env, capture_output=True, text=True)


def test_a_python_that_is_not_here_is_told_by_its_version(bare_machine: dict[str, str]) -> None:
    done = run("bin/test", "--python", VERSION, env=bare_machine)
    assert done.returncode == 69
    assert f"There is no Python {VERSION} here" in done.stderr


def test_a_python_that_the_project_is_not_held_to_is_refused(bare_machine: dict[str, str]) -> None:
    done = run("bin/test", "--python", "3.10", env=bare_machine)
    assert done.returncode == 64
    assert VERSION in done.stderr


def test_a_django_that_has_no_lock_is_refused(bare_machine: dict[str, str]) -> None:
    done = run("bin/test", "--django", "4.2", env=bare_machine)
    assert done.returncode == 66
    assert "requirements-django-4.2.txt" in done.stderr
    assert not (BASE_DIR / ".venv-django-4.2").exists()


def test_a_python_of_pyenv_is_found_behind_a_name_that_does_not_run(bare_machine: dict[str, str]) -> None:
    name = Path(bare_machine["PATH"]) / f"python{VERSION}"
    name.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    name.chmod(0o755)
    kept = Path(bare_machine["PYENV_ROOT"]) / "versions" / f"{VERSION}.99" / "bin" / "python"
    kept.parent.mkdir(parents=True)
    kept.symlink_to(sys.executable)
    done = run("sh", "-c", f". bin/python.sh; python_named {VERSION}", env=bare_machine)
    assert (done.returncode, done.stdout) == (0, f"{kept}\n")
