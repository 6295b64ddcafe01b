"""Sends one request until it is answered or hopeless: a place at the gate, room in the limits, one
of the keys, and again after what passes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from preread.backend import Attempt, Billed
from preread.errors import ProviderError
from preread.providers.dialect import Call, Flight
from preread.providers.gate import Gate
from preread.providers.headers import MOST_S, limits_told, retry_after_s, seconds
from preread.providers.http import Broken, Http, Reply, TooLarge, Unsent
from preread.providers.lanes import Cost
from preread.providers.limits import Clock, Limiter, Ticket, WallClock, Want
from preread.providers.retry import OVERLOADED, UNANSWERED, Retry

TOLD_S = 60.0  # a wait that is told
LIKE_A_KEY = re.compile(r"\b(?:sk|AIza|gsk|xai)[-_\w*]{8,}")

log = logging.getLogger("preread")


class Used(NamedTuple):
    """What an answered request took from the limits, and what is billed."""

    cost: Cost
    billed: Billed


class Refused(Exception):
    """A request that was given up: status (0: none came), the provider's code and its message,
    without keys."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def __str__(self) -> str:
        return self.message

    @property
    def too_long(self) -> bool:
        """The prompt does not fit the model."""
        said = f"{self.code} {self.message}".casefold()
        return self.status in (400, 413, 422) and any(
            hint in said
            for hint in ("context_length", "context length", "context size", "too long", "num_ctx")
        )


class Grounded(Refused):
    """Not sent, or not sent again: it was withdrawn meanwhile."""

    def __init__(self) -> None:
        super().__init__(0, "", "withdrawn before it was sent")


class Sender:
    """See the module. Safe for many tasks of one event loop."""

    def __init__(
        self,
        http: Http,
        limiter: Limiter,
        gate: Gate,
        retry: Retry,
        headers: Callable[[str], Mapping[str, str]],
        clock: Clock | None = None,
        variable: str = "",
    ) -> None:
        """headers: of a request made with a key; variable: where keys come from."""
        self.gate = gate
        self.limiter = limiter
        self._http = http
        self._retry = retry
        self._headers = headers
        self._clock = clock or WallClock()
        self._variable = variable
        self._secrets = [key for lane in limiter.lanes for key in lane.keys if key]

    async def ask(
        self,
        call: Call,
        want: Want,
        used: Callable[[dict[str, Any]], Used],
        flight: Flight | None = None,
    ) -> dict[str, Any]:
        """The object that was answered. want: reserved for it; used: what an answer took.
        flight: of the row. Raises Refused."""
        flight = flight or Flight()
        for attempt in range(1, self._retry.attempts + 1):
            if flight.grounded:
                raise Grounded
            failure, asked_s, again = await self._once(call, want, used, flight)
            if isinstance(failure, dict):
                return failure
            if again and flight.grounded:
                raise Grounded
            if not again or attempt == self._retry.attempts:
                if again:
                    failure.message += f" (after {attempt} attempts)"
                raise failure
            log.debug("attempt %d: %s", attempt, failure.message)
            await self._clock.sleep(self._retry.delay_s(attempt, asked_s))
        raise AssertionError("attempts >= 1")

    async def tell(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Anything that is no model request. Raises ProviderError."""
        headers = self._headers(self.limiter.lanes[0].keys[0])
        try:
            if method == "POST":
                reply = await self._http.post(path, headers, body)
            else:
                reply = await self._http.send(method, path, headers, None)
        except Broken as exc:
            raise ProviderError(
                f"{self._http.base} cannot be reached: {self.clean(str(exc))}.",
                hint="Start the server or mend the URL.",
            ) from exc
        return reply.status, reply.json() or {}

    async def close(self) -> None:
        await self._http.close()

    def clean(self, text: str) -> str:
        """Without anything that is or looks like a key."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return LIKE_A_KEY.sub("…", text)

    async def _once(
        self, call: Call, want: Want, used: Callable[[dict[str, Any]], Used], flight: Flight
    ) -> tuple[dict[str, Any] | Refused, float | None, bool]:
        """One attempt: the answer or why there is none, how long the server asks to wait, and
        whether it may be tried again."""
        async with self.gate:
            attempt = await flight.attempt(want.most)
            if attempt is None:
                raise Grounded
            try:
                ticket = await self.limiter.reserve(*want)
                return await self._send(call, ticket, attempt, used, flight)
            finally:
                attempt.over()

    async def _send(
        self, call: Call, ticket: Ticket, attempt: Attempt,
        used: Callable[[dict[str, Any]], Used], flight: Flight,
    ) -> tuple[dict[str, Any] | Refused, float | None, bool]:  # fmt: skip
        """What room was found for."""
        flight.under_way += 1
        try:
            if not attempt.sent():
                raise Grounded
            reply = await self._http.post(call.path, self._headers(ticket.key), call.body)
            return self._judge(reply, ticket, attempt, used)
        except Broken as exc:
            self.gate.was_too_much()
            if isinstance(exc, Unsent):
                attempt.free()
            refused = Refused(0, "", self.clean(f"no whole answer: {exc}"))
            return refused, None, not isinstance(exc, TooLarge)
        finally:
            flight.under_way -= 1
            self.limiter.done(ticket)

    def _judge(
        self, reply: Reply, ticket: Ticket, attempt: Attempt,
        used: Callable[[dict[str, Any]], Used],
    ) -> tuple[dict[str, Any] | Refused, float | None, bool]:  # fmt: skip
        self.limiter.sync(ticket, limits_told(reply.headers))
        body = reply.json()
        if reply.status == 200 and body is not None and not body.get("error"):
            told = used(body)
            attempt.billed(told.billed)
            self.limiter.settle(ticket, told.cost)
            self.gate.went_well()
            return body, None, False
        if reply.status == 200 and body is None:
            self.gate.was_too_much()
            return Refused(0, "", "no whole answer: the body is not JSON"), None, True
        if reply.status not in UNANSWERED:
            attempt.free()
        code, message = reason(body, reply)
        if reply.status == 401 and self._variable:
            message += f" (the key is that of {self._variable})"
        refused = Refused(reply.status, code, self.clean(message))
        again = self._retry.may(reply.status, code)
        asked_s = retry_after_s(reply.headers) or _delay_in(body) if again else None
        if reply.status in OVERLOADED:
            self.gate.was_too_much()
        if (asked_s or 0.0) >= TOLD_S:
            log.warning("The server asks to wait %.0f s: %s", asked_s, refused.message)
        if reply.status == 429 and again:  # this organisation waits; its rows go to any
            self.limiter.pause(ticket, asked_s or 0.0)
            asked_s = None
        if reply.status < 500:  # refused before anything was read
            self.limiter.settle(ticket, Cost(0, 0))
        return refused, asked_s, again


def reason(body: dict[str, Any] | None, reply: Reply) -> tuple[str, str]:
    """The code and the message of an error, in any of the dialects."""
    error = (body or {}).get("error")
    if isinstance(error, dict):
        code = str(error.get("code") or error.get("type") or error.get("status") or "")
        return code, f"HTTP {reply.status}: {error.get('message') or code}"
    if isinstance(error, str):
        return "", f"HTTP {reply.status}: {error}"
    text = reply.body[:200].decode(errors="replace").strip()
    return "", f"HTTP {reply.status}{': ' + text if text else ''}"


def _delay_in(body: dict[str, Any] | None) -> float | None:
    """Google says it in the body (RetryInfo)."""
    error = (body or {}).get("error")
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and "retryDelay" in detail:
            asked = seconds(str(detail["retryDelay"]))
            return None if asked is None else min(asked, MOST_S)
    return None
