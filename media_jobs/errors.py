"""Why a file is refused."""

from jobs.errors import Permanent


class NotUsable(Permanent):
    """The file is not what it should be, and no retry makes it so. The text is for whoever uploaded it."""


class TooLarge(NotUsable):
    """The file has more bytes than are taken."""
