"""Where the local stack keeps its data, and the secrets that it makes once."""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Home:
    """The data folder: `HANDOFF_HOME`, or `.handoff` beside `manage.py` (as `config.env` has it)."""

    folder: Path

    @classmethod
    def here(cls) -> "Home":
        """The folder that the environment names."""
        return cls(Path(os.environ.get("HANDOFF_HOME") or BASE_DIR / ".handoff").expanduser().absolute())

    @property
    def logs(self) -> Path:
        """One log file per process, and the supervisor's."""
        return self.folder / "logs"

    @property
    def env(self) -> Path:
        """The variables that `config.env` reads last."""
        return self.folder / "env"

    @property
    def state(self) -> Path:
        """What runs, written by the supervisor at each change."""
        return self.folder / "state.json"

    @property
    def lock(self) -> Path:
        """Held by the living supervisor."""
        return self.folder / "lock"

    @property
    def admin_password(self) -> Path:
        """The generated password of the admin."""
        return self.folder / "admin-password"

    def create(self) -> None:
        """The folder and its logs. Only root's stack lets others pass through, because its PostgreSQL is not root."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True, mode=0o700)
        # WhiteNoise warns about a folder of static files that is not there.
        (self.folder / "static").mkdir(exist_ok=True, mode=0o700)

    def write_private(self, path: Path, text: str) -> None:
        """Replaces a file in one step; nobody else may read it (0600), at no moment."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)

    def secret(self, name: str) -> str:
        """A secret made at its first use and kept: 43 characters that need no quoting in a URL."""
        path = self.folder / "secrets.json"
        kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        if name not in kept:
            kept[name] = secrets.token_urlsafe(32)
            self.write_private(path, json.dumps(kept, indent=2))
        return kept[name]
