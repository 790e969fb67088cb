"""The sources of the Celery that the lock names: its tests are in the sdist alone."""

import re
import subprocess
import sys
import tarfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from devstack.home import BASE_DIR

_LOCK = BASE_DIR / "requirements-dev.txt"
# Its tests, and the settings of pytest that they rely on.
_WANTED = re.compile(r"[^/]+/(t/.*|pyproject\.toml)")


class NotTheLocked(Exception):
    """There is no sdist, or another one than the lock names."""


def locked() -> tuple[str, str]:
    """The version of Celery in the lock, and what the lock says of it, which is a requirement of pip's."""
    found = re.search(r"^celery==(\S+) (?:\\\n +--hash=\S+ ?)+", _LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise NotTheLocked(f"{_LOCK.name} names no version of Celery.")
    return found[1], found[0]


def sdist(folder: Path) -> Path:
    """The archive, fetched by pip into this folder unless it is there. Raises NotTheLocked for any but the lock's."""
    version, requirement = locked()
    path = folder / f"celery-{version}.tar.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "celery.txt").write_text(f"{requirement}\n")
        if find_spec("pip") is None:
            subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
        options = ["--quiet", "--disable-pip-version-check", "--no-binary=:all:", "--no-deps", "--require-hashes"]
        command = ["pip", "download", *options, f"--dest={folder}", f"--requirement={folder / 'celery.txt'}"]
        if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            raise NotTheLocked(f"pip could not download the sources of celery {version}.")
    if digest(path) not in requirement:
        raise NotTheLocked(f"{path} is not what {_LOCK.name} names: its sha256 is {digest(path)}.")
    return path


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def unpack(archive: Path, folder: Path) -> Path:
    """The tests of the archive, as they are; returns the folder that they lie in."""
    with tarfile.open(archive) as packed:
        wanted = [member for member in packed.getmembers() if _WANTED.fullmatch(member.name)]
        packed.extractall(folder, members=wanted, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")
