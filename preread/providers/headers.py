"""What response headers say about limits: OpenAI's names (also vLLM's gateways, Groq, DeepSeek's
resellers) and Anthropic's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

from preread.providers.bucket import Told

MOST_S = 3600.0  # then it is asked again: a clock or a server may be wrong by years
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NAMES = {  # what headers call a limit -> the bucket
    "requests": "requests",
    "tokens": "tokens",
    "input-tokens": "input_tokens",
    "output-tokens": "output_tokens",
}
WHAT = ("limit", "remaining", "reset")
# (bucket, the header of its limit, of what remains, of when it is whole again)
HEADERS = [
    (bucket, *(pattern.format(what=what, name=name) for what in WHAT))
    for name, bucket in NAMES.items()
    for pattern in ("x-ratelimit-{what}-{name}", "anthropic-ratelimit-{name}-{what}")
]


def limits_told(headers: Mapping[str, str], now: datetime | None = None) -> dict[str, Told]:
    """By bucket; only those that are spoken of. now: for resets given as a time of day (UTC)."""
    told = {}
    for bucket, limit, remaining, reset in HEADERS:
        if limit in headers:
            left, whole = _number(headers.get(remaining)), _reset(headers.get(reset), now)
            told[bucket] = Told(_number(headers[limit]), left, whole)
    return told


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks to wait, at most MOST_S, None if it does not say. Milliseconds
    win."""
    if (ms := _float(headers.get("retry-after-ms"))) is not None:
        return _wait(ms / 1000)
    value = headers.get("retry-after")
    if value is None or (seconds := _float(value)) is not None:
        return None if value is None else _wait(seconds or 0.0)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return _wait((date - (now or datetime.now(UTC))).total_seconds())


def _wait(seconds: float) -> float:
    return min(max(0.0, seconds), MOST_S)


def seconds(text: str) -> float | None:
    """ "6m0s", "1.5s", "120ms" or "17" in seconds; None if it is none of these."""
    if (plain := _float(text)) is not None:
        return plain
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    whole = "".join(number + unit for number, unit in parts)
    return sum(float(n) * UNITS[u] for n, u in parts) if parts and whole == text else None


def _reset(text: str | None, now: datetime | None) -> float:
    """-1 where nothing, or nothing readable, is said."""
    if text is None or (span := seconds(text)) is not None:
        return -1.0 if text is None else span or 0.0
    try:
        return max(0.0, (datetime.fromisoformat(text) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return -1.0


def _number(text: str | None) -> int:
    value = _float(text)
    return -1 if value is None else int(value)


def _float(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        return None
    return value if value is not None and isfinite(value) else None
