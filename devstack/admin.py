"""The first admin of the local stack."""

from collections.abc import Callable

import psycopg

from devstack.launch import Launch
from devstack.stack import Stack

EMAIL = "admin@example.com"


def ensure(stack: Stack, *, run: Callable[[str, Launch, str], None]) -> str | None:
    """Creates the admin where there is none. Returns the password the one time that it is new, else None.

    The password is kept in the data folder, so a start that dies in between uses the same one again.
    """
    with psycopg.connect(stack.database_url) as connection:
        if connection.execute("SELECT 1 FROM accounts_user WHERE is_superuser").fetchone():
            return None
    password = stack.home.secret("admin_password")
    stack.home.write_private(stack.home.admin_password, f"{password}\n")
    arguments = {
        "DJANGO_SUPERUSER_EMAIL": EMAIL,
        "DJANGO_SUPERUSER_NAME": "Admin",
        "DJANGO_SUPERUSER_PASSWORD": password,
    }
    run("admin", stack.manage("createsuperuser", "--no-input", env=arguments), "an admin who may sign in")
    return password
