"""What lies in Redis while jobs wait and run."""

from dataclasses import dataclass

import redis

# Entries of the one are counted by the other.
_SAME_AGAIN = b"unacked_index"


@dataclass
class BrokerPeak:
    """The most that was seen in Redis: messages, which here are rings, grants and Celery's own, and bytes of data."""

    client: "redis.Redis"
    messages: int = 0
    data_bytes: int = 0

    def look(self) -> None:
        """Looks once more."""
        self.messages = max(self.messages, sum(self._lengths()))
        self.data_bytes = max(self.data_bytes, int(self.client.info("memory")["used_memory_dataset"]))

    def _lengths(self) -> list[int]:
        lengths = []
        for key in self.client.scan_iter():
            kind = self.client.type(key)
            if kind == b"list":
                lengths.append(int(self.client.llen(key)))
            elif kind == b"zset" and not key.endswith(_SAME_AGAIN):
                lengths.append(int(self.client.zcard(key)))
        return lengths
