"""Why a request is not answered, as OpenAI's clients read it.

Format: https://platform.openai.com/docs/guides/error-codes. What the caller can mend is said in
full; what happened inside goes to the log, since it may name files of this machine.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from preread.errors import (
    Cancelled,
    ContextTooLong,
    OutOfMemory,
    PrereadError,
    ProviderError,
    RequestError,
    UnknownName,
)

log = logging.getLogger("preread.server")
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """status: of HTTP; field: of the request, "" if it is none's fault; code: for programs;
    headers: to be sent with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str = "",
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        kind = KINDS.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind}
        return {"error": error | {"param": self.field or None, "code": self.code or None}}


def busy(status: int, message: str) -> Refusal:
    """One that may be sent again in a moment."""
    code = "rate_limit_exceeded" if status == 429 else "unavailable"
    return Refusal(status, message, code=code, headers={"Retry-After": "1"})


def refusal_of(exc: Exception) -> Refusal:
    """What a caller is told of an exception; the rest is logged."""
    if isinstance(exc, Refusal):
        return exc
    if isinstance(exc, ContextTooLong):
        return Refusal(400, str(exc), field="messages", code="context_length_exceeded")
    if isinstance(exc, RequestError):
        return Refusal(400, str(exc))
    if isinstance(exc, UnknownName):
        listed = f"{exc.message} GET /v1/models lists what there is."
        return Refusal(404, listed, field="model", code="model_not_found")
    if isinstance(exc, Cancelled):
        return busy(503, "The server is ending.")
    number = secrets.token_hex(6)
    log.error("%s: %s", number, exc, exc_info=None if isinstance(exc, PrereadError) else exc)
    where = f"The server's log says more at {number}."
    if isinstance(exc, OutOfMemory):
        return busy(503, f"This does not fit the server's memory. {where}")
    if isinstance(exc, ProviderError):
        return Refusal(502, f"The server behind this one did not answer. {where}")
    return Refusal(500, f"The request could not be answered. {where}")
