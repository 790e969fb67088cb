"""Writes of accounts: sign-up and tokens."""

import secrets
from datetime import timedelta
from hashlib import sha256

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import ApiToken, User
from accounts.signals import user_created

# OWASP Authentication Cheat Sheet: allow at least 64, but set an end, so that nobody has megabytes hashed.
PASSWORD_MAX_CHARACTERS = 256
# OWASP Session Management Cheat Sheet asks for 64 bits at the least; 256 equal the hash they are stored as.
TOKEN_BYTES = 32
# Secret scanners find a leaked token by its prefix.
TOKEN_PREFIX = "handoff_"  # noqa: S105  # a prefix, not a secret
LAST_USED_STEP = timedelta(hours=1)


class EmailTaken(Exception):
    """There is an account with this address already."""

    def __init__(self) -> None:
        super().__init__("An account with this e-mail address exists already.")


def sign_up(*, email: str, name: str, password: str) -> User:
    """Creates a user, and what follows from a new user (the welcome mail's job), in one short transaction.

    Everything slow or refusable comes before the transaction: checks first, then the password's hash. Raises
    ValidationError with a list of messages per field, or EmailTaken. The unique constraint decides a race: of any
    number of concurrent sign-ups with one address, one succeeds. A process that dies leaves user and job, or neither.
    """
    user = User(email=User.objects.normalize_email(email), name=name.strip())
    _check(user, password)
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save(force_insert=True)
            user_created.send(sender=User, user=user)
    except IntegrityError as error:
        if _violated_constraint(error) == "user_email_is_unique":
            raise EmailTaken from error
        raise
    return user


def rename(*, email: str, name: str) -> bool:
    """Gives the user with this address another name; False where nobody has the address. Raises ValidationError."""
    user = User.objects.select_for_update().filter(email=User.objects.normalize_email(email)).first()
    if user is None:
        return False
    user.name = name.strip()
    user.clean_fields(exclude={field.name for field in User._meta.fields} - {"name"})
    user.save(update_fields=["name"])
    return True


def create_token(*, user: User) -> str:
    """A new bearer token for the user. The return value is the only copy: the database keeps its hash."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    ApiToken.objects.create(user=user, digest=token_digest(token))
    return token


def user_of_token(*, token: str) -> User | None:
    """The active user whose token this is, or None. Notes the use, at most once an hour per token.

    The look-up goes by hash, so its duration tells nothing about how much of a guess was right.
    """
    found = ApiToken.objects.select_related("user").filter(digest=token_digest(token), user__is_active=True).first()
    if found is None:
        return None
    now = timezone.now()
    if found.last_used_at is None or found.last_used_at < now - LAST_USED_STEP:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_STEP)
        ApiToken.objects.filter(stale, pk=found.pk).update(last_used_at=now)
    return found.user


def token_digest(token: str) -> str:
    """The form in which a token is stored and looked up."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _check(user: User, password: str) -> None:
    messages: dict[str, list[str]] = {}
    try:
        # The constraints are left to the INSERT: asking first would cost a query and still lose a race.
        user.full_clean(exclude={"password"}, validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        messages = error.message_dict
    try:
        _check_password(user, password)
    except ValidationError as error:
        messages["password"] = error.messages
    if messages:
        raise ValidationError(messages)


def _check_password(user: User, password: str) -> None:
    if "\0" in password:
        raise ValidationError("Null characters are not allowed.")
    if len(password) > PASSWORD_MAX_CHARACTERS:
        raise ValidationError(f"This password is too long: at most {PASSWORD_MAX_CHARACTERS} characters.")
    validate_password(password, user)


def _violated_constraint(error: IntegrityError) -> str | None:
    return getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
