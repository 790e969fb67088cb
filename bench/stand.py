"""What every item is given: servers, and the two sides on them."""

from dataclasses import dataclass

import redis

from bench.processes import Family
from bench.sides import Side, both
from devstack.throwaway import Servers


@dataclass(frozen=True)
class Stand:
    """Running servers that are this benchmark's own, with nothing on them that anybody needs."""

    servers: Servers
    ours: Side
    peer: Side

    @classmethod
    def on(cls, servers: Servers) -> "Stand":
        """The stand on servers that run."""
        return cls(servers, *both(servers))

    @property
    def postgres(self) -> Family:
        """The processes of PostgreSQL."""
        assert self.servers.postgres is not None
        return Family(self.servers.postgres.pid)

    @property
    def valkey(self) -> Family:
        """The process of Redis."""
        assert self.servers.redis is not None
        return Family(self.servers.redis.pid)

    def redis_client(self) -> "redis.Redis":
        """A connection to our side's Redis."""
        return redis.Redis.from_url(self.ours.environment["REDIS_URL"])
