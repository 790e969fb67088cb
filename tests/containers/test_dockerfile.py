"""The Dockerfile, and what of the project it is given."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from django.apps import apps

from devstack.home import BASE_DIR
from tests.test_repository import files, named

DOCKERFILE = (BASE_DIR / "Dockerfile").read_text()
IGNORED = [line for line in (BASE_DIR / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold=style", "Dockerfile"], check=False, cwd=BASE_DIR, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.replace("USER 10001:10001", "USER root"))
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, wrong], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DL3002" in done.stdout


def test_the_image_is_built_from_the_lock_with_hashes_and_runs_as_nobody_special() -> None:
    assert "--require-hashes --only-binary :all: -r requirements.txt" in DOCKERFILE
    assert "requirements-" not in DOCKERFILE
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert user != "0"


def test_scripts_lock_and_types_know_the_python_of_the_image() -> None:
    (python,) = re.findall(r"^ARG PYTHON=python:(3\.\d+)-slim-bookworm$", DOCKERFILE, re.MULTILINE)
    (listed,) = re.findall(r"^pythons='(.+)'$", (BASE_DIR / "bin" / "python.sh").read_text(), re.MULTILINE)
    pythons = listed.split()
    assert pythons[-1] == python
    scripts = (BASE_DIR / "bin" / "venv.sh").read_text()
    assert all(f"python{known}" in scripts for known in pythons)
    # From the oldest up to the image's version everything is held to work.
    assert f"compile {pythons[0]} requirements.in" in (BASE_DIR / "bin" / "lock").read_text()
    assert f'python_version = "{pythons[0]}"' in (BASE_DIR / "pyproject.toml").read_text()


def test_the_image_has_the_libraries_of_reports_that_the_scripts_install() -> None:
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends \\\n +(.+) \\\n", DOCKERFILE)
    assert f'missing "Pango, for PDF reports," {packages}' in (BASE_DIR / "bin" / "venv.sh").read_text()


def test_the_build_gets_what_production_runs_and_nothing_else() -> None:
    assert IGNORED[0] == "*"
    let_in = {line[1:] for line in IGNORED if line[0] == "!"}
    packages = {config.name for config in apps.get_app_configs() if (BASE_DIR / config.name).is_dir()}
    assert let_in == packages | {"requirements.txt", "manage.py", "flowerconfig.py", "bin/entrypoint"}
    assert not any(fnmatch(named(path), "*.env") for path in files() if named(path).partition("/")[0] in packages)


def test_no_secret_is_baked_in() -> None:
    assert not re.search(r"(SECRET|PASSWORD|TOKEN|DATABASE_URL)", DOCKERFILE)
