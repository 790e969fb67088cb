"""PostgreSQL and Redis as fixtures that a test may stop, kill, freeze and start again."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from celery import current_app
from django.conf import settings
from kombu import Connection

from devstack.throwaway import Server, Servers
from jobs import settle
from tests.waiting import wait_until


@pytest.fixture(scope="session")
def throwaway_servers(pytestconfig: pytest.Config) -> Servers:
    """The servers that the root conftest has started."""
    for plugin in pytestconfig.pluginmanager.get_plugins():
        if isinstance(servers := getattr(plugin, "SERVERS", None), Servers):
            return servers
    raise LookupError("The conftest.py beside manage.py was not loaded.")


def _whole_again(server: Server | None) -> Iterator[Server]:
    if server is None:
        pytest.skip("the environment names this server: a test may not stop it")
    yield server
    try:
        server.thaw()
    except ProcessLookupError:
        server.start()
    wait_until(server.engine.answers, timeout=30)


@pytest.fixture
def postgres_server(throwaway_servers: Servers) -> Iterator[Server]:
    """The PostgreSQL of this test run; whatever the test did to it, the next one finds it running."""
    yield from _whole_again(throwaway_servers.postgres)
    # What this thread reports by is kept over tests, and broken now.
    settle.close_beside()


@pytest.fixture
def redis_server(throwaway_servers: Servers) -> Iterator[Server]:
    """The Redis of this test run; whatever the test did to it, the next one finds it running."""
    yield from _whole_again(throwaway_servers.redis)


@pytest.fixture
def empty_redis() -> Iterator[None]:
    """Nothing of an earlier test is in Redis, and nothing of this one stays there."""
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.flushall()
    # Commands to workers go over connections that Celery keeps, also those to a Redis that a test has stopped since.
    for kept in list(current_app.pool._resource.queue):
        if isinstance(kept, Connection):
            kept.collect(socket_timeout=0.1)
    yield
    # It may have been stopped.
    with suppress(redis.RedisError), redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1) as client:
        client.flushall()
