"""Sign-up, login and tokens over HTTP."""

from django.contrib.auth import authenticate, login
from django.http import HttpRequest
from ninja import Router, Schema, Status
from ninja.errors import HttpError
from ninja.security import HttpBearer
from pydantic import Field

from accounts import services
from accounts.models import User

router = Router(tags=["accounts"])


class SignUpIn(Schema):
    """A new account. Lengths and forms are checked by the model, so that API and admin say the same."""

    email: str
    name: str
    password: str


class CredentialsIn(Schema):
    """An address and its password. The lengths keep an endless password away from the hasher."""

    email: str = Field(max_length=254, pattern=r"^[^\x00]*$")
    password: str = Field(max_length=services.PASSWORD_MAX_CHARACTERS)


class IdOut(Schema):
    """The key of what was created or found."""

    id: int


class TokenOut(Schema):
    """A bearer token, shown this once."""

    token: str


class BearerToken(HttpBearer):
    """`Authorization: Bearer <token>` with a token from `POST /api/tokens` (RFC 6750, section 2.1)."""

    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        """The token's user, or None."""
        return services.user_of_token(token=token)


@router.post("/signup", response={201: IdOut})
def signup(request: HttpRequest, payload: SignUpIn) -> Status[dict[str, int]]:
    """Creates an account; the welcome mail follows in the background.

    No cookie is read, so no CSRF token is needed. 409 where the address is taken: the answer tells who has an account,
    as every sign-up form does that refuses a taken address.
    """
    try:
        user = services.sign_up(email=payload.email, name=payload.name, password=payload.password)
    except services.EmailTaken as error:
        raise HttpError(409, str(error)) from error
    return Status(201, {"id": user.pk})


@router.post("/login", response=IdOut)
def log_in(request: HttpRequest, payload: CredentialsIn) -> dict[str, int]:
    """Starts a session.

    No CSRF token is needed: the body must be declared as application/json, which a page of another site cannot send
    without a preflight that we do not answer (OWASP CSRF Prevention Cheat Sheet, "Disallowing simple requests"). So
    nobody can be logged in as somebody else from afar.
    """
    user = _authenticated(request, payload)
    login(request, user)
    return {"id": user.pk}


@router.post("/api/tokens", response={201: TokenOut})
def create_token(request: HttpRequest, payload: CredentialsIn) -> Status[dict[str, str]]:
    """A new bearer token. It is shown this once."""
    return Status(201, {"token": services.create_token(user=_authenticated(request, payload))})


def _authenticated(request: HttpRequest, payload: CredentialsIn) -> User:
    # An unknown address costs a hash as well: the time of the answer does not tell who has an account.
    user = authenticate(request, username=payload.email, password=payload.password)
    if not isinstance(user, User):
        raise HttpError(401, "The e-mail address or the password is wrong.")
    return user
