"""Files on the local disk that appear under their names only when they are whole."""

import os
import tempfile
from pathlib import Path

from django.core.files import File
from django.core.files.storage import FileSystemStorage

# In the same file system as the files, so that a rename moves them.
UNFINISHED_FOLDER = ".unfinished"


class WholeFiles(FileSystemStorage):
    """Django's storage of files, except that each is written aside and then renamed, as object stores do by nature.

    Whoever opens a name finds the old file or the new one, never half of one (POSIX rename). A process that dies leaves
    at most a file in `.unfinished`. With `allow_overwrite` the same name may be saved again, by two processes at once
    too: one of the two is there in the end.
    """

    def _save(self, name: str, content: "File[bytes]") -> str:
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(self.location) / UNFINISHED_FOLDER
        aside.mkdir(mode=0o700, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=aside)
        try:
            with os.fdopen(handle, "wb") as output:
                for chunk in content.chunks():
                    output.write(chunk)
                output.flush()
                # Without it a power cut may leave the name without the content.
                os.fsync(output.fileno())
            if self.file_permissions_mode is not None:
                Path(part).chmod(self.file_permissions_mode)
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        return path.relative_to(self.location).as_posix()
