"""A container of the web: most of it in the image that `bin/check-image` has built, where the demo runs as well."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pypdf
import pytest

from tests.containers import compose
from tests.containers.image import BUILT_VARIABLE, Image

built = pytest.mark.skipif(BUILT_VARIABLE not in os.environ, reason="for bin/check-image, which builds the image")

PDF = """
from weasyprint import HTML
HTML(string="<p>Größe ≥ 3 €</p>").write_pdf("/data/trial.pdf")
"""
WRITE = """
from pathlib import Path
for folder in ("/data", "/tmp", "/srv/handoff", "/opt/venv", "/var/tmp"):
    try:
        Path(folder, "trial").write_text("x")
        print(folder)
    except OSError:
        pass
"""


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.of(tmp_path)


def manage(image: Image, *arguments: str, folder: Path) -> str:
    """What a command of Django prints in a container of the web."""
    service = compose.services(folder=folder)["web"]
    given = {name: value for name, value in service["environment"].items() if value is not None}
    command = image.on_machine("web", "manage", *arguments)
    done = subprocess.run(command, check=False, env={**image.environment, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@built
def test_only_the_data_and_the_temporary_files_belong_to_its_user(image: Image) -> None:
    assert image.root
    uid = int(image.user.partition(":")[0])
    assert uid != 0
    open_to_it = set()
    for folder, folders, files in os.walk(image.root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            found = path.lstat()
            if not stat.S_ISLNK(found.st_mode) and (found.st_uid == uid or found.st_mode & stat.S_IWOTH):
                open_to_it.add(f"/{path.relative_to(image.root)}")
    # /dev and /run are the engine's.
    assert {path for path in open_to_it if path.split("/")[1] not in ("dev", "run")} == {"/data", "/tmp", "/var/tmp"}


@built
def test_on_a_file_system_for_reading_it_writes_to_the_data_and_temporary_files(image: Image, tmp_path: Path) -> None:
    assert manage(image, "shell", "--no-imports", "-c", WRITE, folder=tmp_path).split() == ["/data", "/tmp"]


def test_django_finds_it_fit_for_production(image: Image, tmp_path: Path) -> None:
    told = manage(image, "check", "--deploy", "--fail-level=ERROR", folder=tmp_path)
    # Whether browsers are to have the domain in a list of their own is for its owner to say.
    assert set(re.findall(r"\((\w+\.[EWC]\d+)\)", told)) == {"security.W021"}


@built
def test_it_sets_a_pdf_in_a_font_of_its_own(image: Image, tmp_path: Path) -> None:
    manage(image, "shell", "--no-imports", "-c", PDF, folder=tmp_path)
    (page,) = pypdf.PdfReader(image.data / "trial.pdf").pages
    assert page.extract_text().strip() == "Größe ≥ 3 €"
    fonts = page["/Resources"]["/Font"]  # type: ignore[index]
    assert all("DejaVu" in str(font.get_object()["/BaseFont"]) for font in fonts.values())


@built
def test_it_tells_an_engine_how_to_ask_for_its_health() -> None:
    config = json.loads((Path(os.environ[BUILT_VARIABLE]) / "config.json").read_text())
    assert config["Healthcheck"]["Test"] == ["CMD", "bin/entrypoint", "healthy"]
    assert config["WorkingDir"] == "/srv/handoff"
    assert config["Cmd"] == ["web"]
