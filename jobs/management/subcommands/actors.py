"""Who acts at a terminal."""

import getpass
import socket

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser

from jobs.audit import Actor


def add_argument(parser: CommandParser) -> None:
    """`--actor`."""
    parser.add_argument(
        "--actor",
        metavar="NAME",
        help="who acts: the login of a user of the site, or any name; otherwise your name on this machine",
    )


def named(name: str | None) -> Actor:
    """The user of that login; or, with the account that ran the command, since anybody may say any name, the name."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):
        # A container may run as a number that no account has.
        account = "somebody"
    here = f"{account}@{socket.gethostname()}"
    if not name:
        return here
    users = get_user_model()
    user = users._default_manager.filter(**{users.USERNAME_FIELD: name}).first()
    return user if user is not None else f"{name} ({here})"
