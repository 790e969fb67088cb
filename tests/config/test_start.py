"""What loading the project leaves behind in a process."""

import subprocess
import sys

import pytest

from devstack.home import BASE_DIR

LOOK = "import gc; print(gc.isenabled(), gc.get_threshold()[0] <= 100_000, gc.get_threshold() == before)"


@pytest.mark.parametrize(
    ("load", "told"),
    [("import config", "True True False"), ("import config, django; django.setup()", "True True True")],
    ids=["without Django", "with Django"],
)
def test_the_collector_is_never_off_and_as_ever_once_all_is_loaded(load: str, told: str) -> None:
    code = f"import gc; before = gc.get_threshold(); {load}; {LOOK}"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=BASE_DIR, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (told, 0), done.stderr
