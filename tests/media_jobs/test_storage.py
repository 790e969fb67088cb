"""Files appear under their names only when they are whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.files.base import ContentFile, File
from django.core.files.storage import default_storage


class Breaking(File):  # type: ignore[type-arg]
    """A file whose second half cannot be read."""

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        yield b"half of it"
        raise OSError("the network went away")


def content(name: str) -> bytes:
    with default_storage.open(name) as file:
        return file.read()


def test_a_file_that_could_not_be_written_to_its_end_is_not_there(stored: Callable[[], list[str]]) -> None:
    with pytest.raises(OSError, match="went away"):
        default_storage.save("folder/name", Breaking(None))
    assert stored() == []


def test_a_name_is_replaced_in_one_step_or_not_at_all(stored: Callable[[], list[str]]) -> None:
    assert default_storage.save("folder/name", ContentFile(b"first")) == "folder/name"
    held = default_storage.open("folder/name")
    with pytest.raises(OSError, match="went away"):
        default_storage.save("folder/name", Breaking(None))
    assert content("folder/name") == b"first"
    assert default_storage.save("folder/name", ContentFile(b"second")) == "folder/name"
    assert content("folder/name") == b"second"
    # Whoever is reading goes on reading what was there when it began.
    assert held.read() == b"first"
    held.close()
    assert stored() == ["folder/name"]


def test_nobody_else_on_the_machine_reads_what_is_not_whole_yet() -> None:
    default_storage.save("name", ContentFile(b"x"))
    assert Path(default_storage.path(".unfinished")).stat().st_mode & 0o077 == 0
