"""What the containers of a test are made of: this checkout, or the built image that `bin/check-image` names."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from devstack.home import BASE_DIR

# A folder with the files of a built image (`root`) and its configuration (`config.json`).
BUILT_VARIABLE = "HANDOFF_BUILT_IMAGE"
# As the compose file wants it: nothing can be written but /data and /tmp, and nobody is root.
IN_ROOT = """
root=$1 data=$2 user=$3 && shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$data" "$root/data"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot --userspec="$user" --groups= "$root" "$@"
"""


@dataclass(frozen=True)
class Image:
    """The files, and what the Dockerfile says of a process that runs them."""

    entrypoint: list[str]
    environment: dict[str, str]
    data: Path
    root: Path | None = None
    user: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Image":
        """The image under test, with its volume in this folder. Skips the test where nobody may name a machine."""
        done = subprocess.run([*_unshare(), "true"], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no machine with a name of its own can be had here: {done.stderr.strip()}")
        data = folder / "data"
        data.mkdir()
        if not (built := os.environ.get(BUILT_VARIABLE)):
            environment = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONUNBUFFERED": "1",
                "HOME": str(folder),
                "HANDOFF_HOME": str(data),
            }
            return cls([str(BASE_DIR / "bin" / "entrypoint")], environment, data)
        config = json.loads((Path(built) / "config.json").read_text())
        uid, gid = (int(number) for number in config["User"].split(":"))
        os.chown(data, uid, gid)
        environment = dict(pair.split("=", 1) for pair in config["Env"])
        return cls(config["Entrypoint"], environment, data, Path(built, "root").resolve(), config["User"])

    def on_machine(self, name: str, *command: str) -> list[str]:
        """The entrypoint with this command, on a machine with a name of its own, as in a container."""
        unshare = _unshare()
        within: list[str] = []
        if self.root:
            unshare.append("--mount")
            within = ["sh", "-euc", IN_ROOT, "sh", str(self.root), str(self.data), self.user]
        named = 'hostname "$1" && shift && exec "$@"'
        return [*unshare, "sh", "-c", named, "sh", name, *within, *self.entrypoint, *command]


def _unshare() -> list[str]:
    return ["/usr/bin/unshare", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"])]
