"""How a process is started: in its own process group, and, as root, a server as somebody who is not."""

import os
import pwd
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

UNPRIVILEGED_USER = "nobody"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command line and what it needs."""

    argv: list[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    unprivileged: bool = False
    pass_fds: tuple[int, ...] = ()

    def start(
        self, *, output: IO[bytes] | int, env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Starts the process as the leader of its own session and group, so that signals to the group reach all of it
        and a Ctrl-C in the terminal reaches none of it."""
        return subprocess.Popen(
            self.argv,
            cwd=self.folder,
            env={**os.environ, **self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=self.pass_fds,
            **(drop_root() if self.unprivileged else {}),
            **more,
        )


def drop_root() -> dict[str, Any]:
    """Options of subprocess that leave root behind; none for an ordinary user."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED_USER, "group": pwd.getpwnam(UNPRIVILEGED_USER).pw_gid, "extra_groups": []}


def give_away(path: Path) -> None:
    """As root: makes the unprivileged user the owner."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(UNPRIVILEGED_USER)
        os.chown(path, account.pw_uid, account.pw_gid)
