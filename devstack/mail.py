"""The mail catcher: takes every mail over SMTP, delivers none, shows them on a page and as JSON."""

import sys
from pathlib import Path

from devstack.launch import Launch
from devstack.ports import LOOPBACK


def launch(*, folder: Path, smtp_port: int, web_port: int) -> Launch:
    """How maildump starts; what it caught is kept in `folder` over restarts."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Launch(
        argv=[
            str(Path(sys.executable).with_name("maildump")),
            "--foreground",
            "--no-quit",
            f"--smtp-ip={LOOPBACK}",
            f"--smtp-port={smtp_port}",
            f"--http-ip={LOOPBACK}",
            f"--http-port={web_port}",
            f"--db={folder / 'mails.sqlite3'}",
        ],
        folder=folder,
    )
