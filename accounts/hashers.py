"""Password hashing."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class Argon2id(Argon2PasswordHasher):
    """argon2id with 19 MiB, two passes and one lane (OWASP Password Storage Cheat Sheet): about 20 ms, so that signing
    up stays quick; Django's default of 100 MiB takes ten times as long."""

    time_cost = 2
    memory_cost = 19 * 1024
    parallelism = 1
