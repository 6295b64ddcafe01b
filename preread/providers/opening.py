"""A remote backend from what a user says: `openai`, `openai:http://localhost:8000` …"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from preread.bridge import LoopThread
from preread.config import ProvidersSection
from preread.errors import ConfigError, ProviderError
from preread.providers.anthropic import HOST as ANTHROPIC_HOST
from preread.providers.anthropic import LIVES, Anthropic
from preread.providers.backend import RemoteBackend, with_limit
from preread.providers.deepseek import HOST as DEEPSEEK_HOST
from preread.providers.deepseek import DeepSeek
from preread.providers.dialect import Dialect
from preread.providers.gate import Gate
from preread.providers.gemini import HOST as GEMINI_HOST
from preread.providers.gemini import Gemini
from preread.providers.http import Http
from preread.providers.keys import Organisation, find_keys
from preread.providers.lanes import Lane, Limits
from preread.providers.limits import Clock, Limiter
from preread.providers.ollama import HOST as OLLAMA_HOST
from preread.providers.ollama import Ollama
from preread.providers.openai import HOST as OPENAI_HOST
from preread.providers.openai import OpenAI
from preread.providers.prices import listed
from preread.providers.retry import Retry
from preread.providers.sender import Sender

EXAMPLE = "For example openai:http://localhost:8000"

log = logging.getLogger("preread")


@dataclass(frozen=True, slots=True)
class Kind:
    """One provider: where it is when no URL is given ("": it must be), what its variables are
    called, and how its dialect is made from (model, base URL, configuration)."""

    host: str
    keys: tuple[str, ...]
    url: str
    make: Callable[[str, str, ProvidersSection], Dialect]


def kinds() -> dict[str, Kind]:
    """By the word before the colon."""
    return {
        "openai": Kind(
            OPENAI_HOST,
            ("OPENAI_API_KEY",),
            "OPENAI_BASE_URL",
            lambda model, base, config: OpenAI(model, base),
        ),
        "anthropic": Kind(
            ANTHROPIC_HOST,
            ("ANTHROPIC_API_KEY",),
            "ANTHROPIC_BASE_URL",
            lambda model, base, config: Anthropic(model, base, ttl=config.cache_ttl),
        ),
        "gemini": Kind(
            GEMINI_HOST,
            ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            "GEMINI_BASE_URL",
            lambda model, base, config: Gemini(model, base, explicit=config.explicit_cache),
        ),
        "deepseek": Kind(
            DEEPSEEK_HOST,
            ("DEEPSEEK_API_KEY",),
            "DEEPSEEK_BASE_URL",
            lambda model, base, config: DeepSeek(model, base),
        ),
        "ollama": Kind(
            OLLAMA_HOST,
            (),
            "OLLAMA_HOST",
            lambda model, base, config: Ollama(model, base, num_ctx=config.num_ctx),
        ),
    }


def is_remote(spec: str) -> bool:
    """Whether a backend's name means somebody else's server."""
    return spec.partition(":")[0] in kinds()


def open_remote(
    spec: str,
    model: str = "",
    config: ProvidersSection | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> RemoteBackend:
    """`connect` for code without an event loop, and for any thread. Blocks while the server is
    asked what it is."""
    loop = LoopThread("preread-probe")
    try:
        return loop.run(connect(spec, model, config, env=env))
    finally:
        loop.stop()


async def connect(
    spec: str,
    model: str = "",
    config: ProvidersSection | None = None,
    *,
    env: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> RemoteBackend:
    """Open `NAME` or `NAME:URL`; asks the server what it is. Raises ConfigError, ProviderError,
    ModelNotFound."""
    env = os.environ if env is None else env
    config = config or ProvidersSection()
    name, _, url = spec.partition(":")
    if name not in (known := kinds()):
        raise ConfigError(
            f"No backend {name!r}.", hint=f"Backends: local, {', '.join(known)} (NAME or NAME:URL)."
        )
    if config.cache_ttl not in LIVES:
        raise ConfigError(f"providers.cache_ttl = {config.cache_ttl!r}.", hint="Give 5m or 1h.")
    kind = known[name]
    told = env.get(kind.url, "")
    if told and "://" not in told:  # as OLLAMA_HOST is usually written
        told = f"http://{told}"
    base = _base(url or told or kind.host, spec)
    organisations = find_keys(kind.keys, config.keys_file, env)
    at_home = _host(base) == _host(kind.host)  # a server of one's own asks no money, unless told so
    if not organisations and at_home and kind.keys:
        raise ConfigError(f"{name} needs a key.", hint=f"export {kind.keys[0]}=…")
    dialect = kind.make(model, base, config)
    sender = _sender(dialect, base, organisations, config, clock, *kind.keys[:1])
    try:
        facts = await dialect.start(sender)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ProviderError(
            f"{base} does not answer as {name} does ({type(exc).__name__}).", hint="Mend the URL."
        ) from exc
    finally:
        await sender.close()  # connections belong to a loop, and this may not be the one they serve
    entry = listed(name, facts.model, config.prices, own=at_home, hour=config.cache_ttl == "1h")
    if entry.prices is None and at_home and kind.keys:
        log.warning("No price is known for %s: its bill shows tokens only.", facts.model)
    if entry.min_prefix >= 0:
        dialect.traits = replace(dialect.traits, min_prefix=entry.min_prefix)
    for note in facts.notes:
        log.warning("%s", note)
    facts = with_limit(facts, entry.limit)
    if facts.slots:
        sender.gate.at_most(facts.slots)
    return RemoteBackend(dialect, sender, facts, base=base, prices=entry.prices, clock=clock)


def _sender(
    dialect: Dialect,
    base: str,
    organisations: list[Organisation],
    config: ProvidersSection,
    clock: Clock | None,
    variable: str = "",
) -> Sender:
    traits = dialect.traits
    limits = Limits(
        config.rpm, config.tpm, config.input_tpm, config.output_tpm, config.period_s,
        cached=traits.cached_limited, burst=traits.burst, refills=traits.refills,
    )  # fmt: skip
    nobody = Organisation("", ("",))
    lanes = [Lane(o.name, o.keys, limits) for o in organisations or [nobody]]
    http = Http(base, timeout_s=config.timeout_s, connections=config.max_inflight)
    gate = Gate(config.max_inflight)
    retry = Retry(config.attempts)
    limiter = Limiter(lanes, clock, firsts=traits.firsts, ttl_s=traits.ttl_s)
    return Sender(http, limiter, gate, retry, dialect.headers, clock, variable)


def _base(url: str, spec: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.port != 0  # raises for what is no port
    except ValueError:
        raise ConfigError(f"{spec!r} is no URL.", hint=EXAMPLE) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "A URL with a key in it would be shown in logs.", hint="Use the environment variable."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not good:
        raise ConfigError(f"{spec!r}: {url!r} is no URL.", hint=EXAMPLE)
    return url.rstrip("/")


def _host(url: str) -> str | None:
    return urlsplit(url).hostname
