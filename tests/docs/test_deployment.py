"""`docs/deployment.md` against the compose file and the commands that it tells to call."""

import re
from pathlib import Path

from django.core.management import get_commands, load_command_class

from config.env import Environment
from devstack.home import BASE_DIR
from tests.containers import compose

PAGE = (BASE_DIR / "docs" / "deployment.md").read_text()


def test_the_settings_of_the_page_are_enough_for_docker_compose(tmp_path: Path) -> None:
    (block,) = re.findall(r"<<END\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    lines = block.replace("$(openssl rand -hex 32)", "0" * 64).splitlines()
    variables = dict(line.split("=", 1) for line in lines)
    done = compose.config("--quiet", variables=variables, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_secret_that_may_be_a_file_is_told(tmp_path: Path) -> None:
    (named,) = re.findall(r"^SECRET_KEY_FILE=.+?^So may (.+?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    told = {name.lower() for name in ["SECRET_KEY", *re.findall(r"`(\w+)`", named)]}
    assert told == compose.project(folder=tmp_path)["secrets"].keys()


def test_every_service_that_a_command_names_is_in_the_compose_file(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    (stopped,) = re.findall(r"^docker compose stop (.+)$", PAGE, re.MULTILINE)
    ours = {name for name, service in services.items() if compose.is_ours(service)}
    assert set(stopped.split()) == ours - {"migrate"}
    called = re.findall(r"^docker compose (?:exec|run) .*?(\b(?:postgres|web|migrate)\b)", PAGE, re.MULTILINE)
    assert len(called) == len(re.findall(r"^docker compose (?:exec|run) ", PAGE, re.MULTILINE))
    assert set(called) <= services.keys()


def test_every_command_of_django_that_the_page_tells_exists_with_its_options() -> None:
    told = re.findall(r"web manage (\w+)((?: --[\w-]+)*)", PAGE)
    assert {name for name, _ in told} == {"createsuperuser", "restored"}
    for name, options in told:
        app = get_commands()[name]
        parser = load_command_class(app if isinstance(app, str) else app.name, name).create_parser("manage.py", name)
        for option in options.split():
            assert option in parser.format_help()


def test_the_proxy_lets_the_largest_upload_through() -> None:
    (megabytes,) = re.findall(r"max_size (\d+)MB", PAGE)
    assert int(megabytes) * 1_000_000 > Environment.model_fields["video_max_bytes"].default
