"""Job ids: version 7 UUIDs, so that new rows lie together in the primary key's index."""

from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

__all__ = ["InvalidJobId", "derived_id", "id_of_message", "new_id", "parse_id"]

_NAMESPACE = UUID("5f0c1d0e-6b1e-4a57-9b5e-0f6c2f6a7d11")


class InvalidJobId(ValueError):
    """A `task_id` that is no UUID: the ledger's key is one, so the job could not be stored."""

    def __init__(self, value: object, *, name: str = "task_id") -> None:
        super().__init__(f"{name}={value!r:.100} is not a UUID. Leave {name} out, or pass a UUID as a string.")


def new_id() -> UUID:
    """A fresh id, ordered by time (RFC 9562, section 5.7)."""
    return uuid7()


def derived_id(*parts: object) -> UUID:
    """The same id for the same parts: what is inserted under it twice is stored once."""
    return uuid5(_NAMESPACE, "/".join(str(part) for part in parts))


def parse_id(value: object) -> UUID:
    """A job id from whatever a caller or a message carries; raises InvalidJobId."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidJobId(value) from None


def is_id(value: object) -> bool:
    """Whether `parse_id` takes it."""
    try:
        parse_id(value)
    except InvalidJobId:
        return False
    return True


def id_of_message(task_id: object) -> UUID:
    """The id of the job of any message: another producer's may have an id that is no UUID."""
    try:
        return parse_id(task_id)
    except InvalidJobId:
        return derived_id("foreign", task_id)
