"""What a result was measured on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psycopg
import redis

from devstack.home import BASE_DIR
from devstack.throwaway import Servers

_PACKAGES = {
    "Django": "Django",
    "Celery": "celery",
    "kombu": "kombu",
    "redis-py": "redis",
    "psycopg": "psycopg",
    "django-celery-results": "django-celery-results",
}


def versions(servers: Servers) -> dict[str, str]:
    """Names and versions of everything that a figure depends on, asked of the running servers."""
    with psycopg.connect(servers.variables["DATABASE_URL"]) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    with redis.Redis.from_url(servers.variables["REDIS_URL"]) as client:
        facts = client.info("server")
    is_valkey = facts.get("server_name") == "valkey"
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version(package) for name, package in _PACKAGES.items()},
        "PostgreSQL": str(row[0]) if row else "?",
        "Valkey" if is_valkey else "Redis": str(facts["valkey_version" if is_valkey else "redis_version"]),
        "Handoff": _commit(),
    }


def sentence(facts: dict[str, str]) -> str:
    """The same in one line."""
    facts = dict(facts)
    cores, processor = facts.pop("cores"), facts.pop("processor")
    system = facts.pop("system")
    return f"{cores} cores ({processor}), {system}; {', '.join(f'{name} {which}' for name, which in facts.items())}."


def _commit() -> str:
    """The commit that was measured, with a plus sign where files differ from it; empty outside of a checkout."""
    try:
        command = ["git", "-c", f"safe.directory={BASE_DIR}", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, cwd=BASE_DIR, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "of unknown version"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
