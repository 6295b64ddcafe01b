"""A simulated provider over real HTTP: OpenAI's dialect (also as vLLM, llama-server and DeepSeek
speak it), Anthropic's, Gemini's and Ollama's, with prefix caches, limits and their headers, latency
and faults. Figures that come from it are simulated, and should be called so.

python -m preread.testing.provider --port 0          # prints its URL; --help lists the rest
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from preread.testing.replies import Reply, find_line
from preread.testing.simulation.anthropic import AnthropicSpeaker
from preread.testing.simulation.faults import KINDS, Faults, Odds
from preread.testing.simulation.gemini import GeminiSpeaker
from preread.testing.simulation.job import BadRequest, Outcome
from preread.testing.simulation.memory import PrefixCache
from preread.testing.simulation.ollama import OllamaSpeaker
from preread.testing.simulation.openai import SERVERS, OpenAISpeaker
from preread.testing.simulation.rates import COUNTS, Rates, organisation_of
from preread.testing.simulation.speaker import Speaker, key_of
from preread.testing.simulation.text import Answer, Words, write

if TYPE_CHECKING:
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


CHOICES = {"server": SERVERS, "counts": COUNTS}


@dataclass(frozen=True, slots=True)
class Profile:
    """What the provider is like.

    model: its name, or several with commas; server: whose additions to OpenAI's dialect it has;
    limit: tokens of prompt and answer; slots: what llama-server says it has; tells: what of a
    prompt was cached (vLLM and SGLang do if told to); min_prefix, block, ttl_s, firsts: of its
    prefix cache; requests to output_tokens: limits per period and organisation (a key `sk-NAME-…`
    belongs to NAME), 0 for none; counts: how they are counted, see Meter; latency_ms, of every
    request, read_ms and write_ms, of each computed and each written token.
    """

    model: str = "simulated"
    server: str = "openai"
    limit: int = 131_072
    slots: int = 4
    min_prefix: int = 1024
    block: int = 128
    ttl_s: float = 300.0
    firsts: int = 1
    requests: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    period_s: float = 60.0
    counts: str = "bucket"
    latency_ms: float = 0.0
    read_ms: float = 0.0
    write_ms: float = 0.0
    tells: bool = True
    odds: Odds = field(default_factory=Odds)
    keys: tuple[str, ...] = ()  # known ones; none: every key will do


class Provider:
    """The server; an async context manager on a free port of 127.0.0.1. answer: (prefix, question)
    -> text; by default the line of the system text that fits the question."""

    def __init__(self, profile: Profile | None = None, answer: Answer = find_line) -> None:
        self.profile = profile = profile or Profile()
        self.words = Words()
        self.cache = PrefixCache(profile.block, profile.min_prefix, profile.ttl_s, profile.firsts)
        names = ("requests", "tokens", "input_tokens", "output_tokens")
        limits = {name.replace("_", "-"): getattr(profile, name) for name in names}
        self.rates = Rates(limits, profile.period_s, profile.counts)
        self.faults = Faults(profile.odds)
        self.asked: Counter[str] = Counter()  # by path
        self.answered = 0
        self.bodies: list[dict[str, Any]] = []  # the last few, as they came
        self.keys: Counter[str] = Counter()
        self.url = ""
        self.tokens = Counter[str]()  # cached, computed, output
        self._answer = answer
        self._ending = asyncio.Event()
        self._runner: web.AppRunner | None = None
        size = (self.words, profile.limit)
        self.openai = OpenAISpeaker(self.words, profile.server, profile.limit, profile.tells)
        self.anthropic = AnthropicSpeaker(*size, profile.min_prefix)
        self.gemini = GeminiSpeaker(*size, profile.min_prefix)
        self.ollama = OllamaSpeaker(self.words, profile.model, profile.limit)

    @property
    def over(self) -> int:
        """Requests that came although a limit had no room for them."""
        return sum(meter.over for meter in self.rates.meters.values())

    async def start(self, port: int = 0) -> str:
        """Listen; the URL."""
        from aiohttp import web

        from preread.testing.simulation.routes import routes

        app = web.Application(client_max_size=64 << 20)
        app.add_routes(routes(self))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self.url

    async def stop(self) -> None:
        self._ending.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Provider:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    def handler(self, speaker: Speaker) -> Handler:
        """Answers model requests in a dialect."""

        async def handle(request: web.Request) -> web.StreamResponse:
            data = await request.read()
            self.asked[request.path] += 1
            key = key_of(request.headers, request.query)
            self.keys[key] += 1
            if self.profile.keys and key not in self.profile.keys:
                return self._error(speaker, 401, "invalid_api_key", f"Incorrect API key: {key}.")
            fault = self.faults.draw(data)
            if fault == "reset":
                assert request.transport is not None
                request.transport.abort()
            if fault in ("hang", "reset"):
                await self._ending.wait()
            if fault == "busy":
                busy = {"retry-after-ms": "20"}
                return self._error(speaker, 429, "rate_limit_exceeded", "Slow down.", busy)
            if fault == "error":
                return self._error(speaker, 500, "server_error", "Something went wrong.")
            try:
                body = self._body(data)
                return await self._run(request, speaker, body, key, half=fault == "half")
            except BadRequest as exc:
                return self._error(speaker, exc.status, exc.code, str(exc))

        return handle

    async def _run(
        self, request: web.Request, speaker: Speaker, body: dict[str, Any], key: str, half: bool
    ) -> web.StreamResponse:
        self.bodies = [*self.bodies[-15:], body]
        now, profile = time.monotonic(), self.profile
        job = speaker.job(body, now)
        cached = job.cached
        if cached < 0:
            cached = self.cache.known(job.ids, now, job.salt) if job.reads else 0
        organisation = organisation_of(key)
        wait = self.rates.admit(organisation, speaker.amounts(job, cached), now)
        headers = self.rates.headers(organisation, speaker.pattern, speaker.stamps, now)
        if wait:
            headers |= {"retry-after-ms": str(int(wait * 1000) + 1)}
            text = "Rate limit reached."
            return self._error(speaker, 429, "rate_limit_exceeded", text, headers)
        prefix, question, begun = self.words.parse(job.ids, job.messages)
        said = self._answer(prefix, question)
        text = said.text if isinstance(said, Reply) else said
        rest = self.words.decode(self.words.encode(text)[len(begun) :])
        out = Outcome(job, text, begun, write(self.words, rest, job.wish), cached)
        busy_ms = profile.latency_ms + profile.read_ms * (out.prompt - cached)
        await asyncio.sleep((busy_ms + profile.write_ms * out.output) / 1000)
        if job.keeps:  # written only when it is answered: requests at once all miss
            ids = job.ids + [self.words.encode(piece)[0] for piece in out.written.pieces]
            self.cache.learn(ids, time.monotonic(), job.salt)
        speaker.learned(out, time.monotonic())
        for name, amount in speaker.unused(out).items():
            self.rates.give(organisation, name, amount, now)
        self.answered += 1
        self.tokens.update(cached=cached, computed=out.prompt - cached, output=out.output)
        return await self._send(request, speaker.reply(out), headers, half)

    async def _send(
        self, request: web.Request, reply: dict[str, Any], headers: dict[str, str], half: bool
    ) -> web.StreamResponse:
        from aiohttp import web

        data = json.dumps(reply).encode()
        if not half:
            return web.Response(body=data, headers=headers, content_type="application/json")
        broken = web.StreamResponse(headers={**headers, "Content-Length": str(len(data))})
        await broken.prepare(request)
        await broken.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.close()
        return broken

    def _body(self, data: bytes) -> dict[str, Any]:
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise BadRequest(400, "invalid_json", "The body is no JSON object.")
        return body

    @staticmethod
    def _error(
        speaker: Speaker, status: int, code: str, message: str, headers: Any = None
    ) -> web.Response:
        from aiohttp import web

        return web.json_response(
            speaker.error(status, code, message), status=status, headers=headers
        )


def main(argv: list[str] | None = None) -> None:
    """Run until interrupted; prints the URL, and at the end what was asked."""
    parser = ArgumentParser(prog="python -m preread.testing.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--answer", help="always this text")
    for name, kind in Profile.__annotations__.items():
        default = getattr(Profile(), name)
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action=BooleanOptionalAction, default=default)
        elif isinstance(default, str | int | float):
            parser.add_argument(
                option, type=type(default), default=default, choices=CHOICES.get(name)
            )
        del kind
    for kind in (*KINDS, "seed"):
        default = getattr(Odds(), kind)
        parser.add_argument(f"--odds-{kind}", type=type(default), default=default)
    asyncio.run(_serve(parser.parse_args(argv)))


async def _serve(args: Namespace) -> None:
    given = vars(args)
    odds = Odds(**{kind: given.pop(f"odds_{kind}") for kind in (*KINDS, "seed")})
    port, text = given.pop("port"), given.pop("answer")
    provider = Provider(Profile(**given, odds=odds), (lambda *_: text) if text else find_line)
    print(await provider.start(port), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await provider.stop()
        print(json.dumps(summary(provider)), file=sys.stderr)


def summary(provider: Provider) -> dict[str, Any]:
    """What it was asked, and what it saw of its limits."""
    meters = {
        f"{organisation or 'all'} {name}": {
            "limit": meter.limit, "passed": meter.passed, "over": meter.over, "worst": meter.worst,
        }
        for (organisation, name), meter in provider.rates.meters.items()
    }  # fmt: skip
    return {
        "simulated": True,
        "asked": dict(provider.asked),
        "answered": provider.answered,
        "over": provider.over,
        "tokens": dict(provider.tokens),
        "faults": dict(provider.faults.met),
        "limits": meters,
    }


if __name__ == "__main__":
    main()
