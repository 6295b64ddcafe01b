"""HTTP requests to desks, and answers back: OpenAI's paths, health and metrics.

server = Server(keys, desks, config)
url = await server.start()
await server.stop()
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiohttp import web

from preread.batch.bodies import Defaults
from preread.config import Config
from preread.errors import ConfigError
from preread.server.asked import Asked, read_chat, read_completion, read_counted
from preread.server.desk import Desk
from preread.server.door import Door
from preread.server.keys import Keys
from preread.server.listing import models
from preread.server.prometheus import TYPE, exposition
from preread.server.refusal import Refusal, busy, refusal_of
from preread.server.replies import Reply
from preread.server.streaming import Events, sent
from preread.types import Completion, Usage

log = logging.getLogger("preread.server")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Read = Callable[[dict[str, Any], Defaults], Asked]
TENANT = web.RequestKey("tenant", str)


class Server:
    """One address, many desks. All methods from one event loop."""

    def __init__(self, keys: Keys, desks: Mapping[str, Desk], config: Config) -> None:
        """desks: of every tenant that a key names. Raises ConfigError, see Door."""
        self._door = Door(keys, config.server.host)
        self._config = config
        self._desks = desks
        self._defaults = Defaults(max_tokens=config.context.max_tokens)
        self._runner: web.AppRunner | None = None
        self._closing = False

    async def start(self) -> str:
        """Listen; the URL that clients are given. Raises ConfigError for an address that cannot be
        had."""
        chosen = self._config.server
        app = web.Application(client_max_size=chosen.max_body_mb << 20, middlewares=[self._guard()])
        app.add_routes(self._routes())
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, keepalive_timeout=75.0,
            shutdown_timeout=chosen.drain_s,
        )  # fmt: skip
        await self._runner.setup()
        site = web.TCPSite(self._runner, chosen.host, chosen.port, backlog=1024)
        try:
            await site.start()
        except (OSError, OverflowError) as exc:
            await self._runner.cleanup()
            raise ConfigError(
                f"{chosen.host}:{chosen.port} cannot be listened at: {exc}.",
                hint="Give another --port (0: any free one).",
            ) from exc
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    async def stop(self) -> None:
        """Take no more requests, let those under way end (`server.drain_s`), cancel the rest.
        Idempotent."""
        self._closing = True
        if (runner := self._runner) is not None:
            self._runner = None
            await runner.cleanup()
        for desk in self._desks.values():
            await desk.shelf.close()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", _health),
            web.get("/metrics", self._metrics),
            web.get("/v1/models", self._models),
            web.get("/v1/models/{name:.+}", self._model),
            web.post("/tokenize", self._tokenize),
            web.post("/v1/chat/completions", self._answers(read_chat)),
            web.post("/v1/completions", self._answers(read_completion)),
        ]

    def _guard(self) -> Any:
        """Before and after every handler: who may ask, and errors in OpenAI's shape."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await answered(request, handler)
            return await sent(request, response, self._config.server.write_s)

        async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                if self._closing:
                    raise busy(503, "The server is ending.")
                if request.path != "/health":
                    request[TENANT] = self._door.admit(request)
                return await handler(request)
            except web.HTTPException as exc:
                refusal = Refusal(exc.status, f"{exc.reason}: {request.method} {request.path}")
                if allowed := exc.headers.get("Allow"):
                    refusal.headers["Allow"] = allowed
            except Exception as exc:
                if _left(request, exc):
                    raise
                refusal = refusal_of(exc)
            if refusal.status in (401, 413):
                refusal.headers["Connection"] = "close"
            return web.json_response(
                refusal.to_json(), status=refusal.status, headers=refusal.headers
            )

        return guard

    def _desk(self, request: web.Request) -> Desk:
        """Of who asks."""
        return self._desks[request[TENANT]]

    @asynccontextmanager
    async def _entered(self, request: web.Request) -> AsyncIterator[Desk]:
        """The desk while there is room at it; counts what becomes of the request."""
        desk, began, ended = self._desk(request), time.perf_counter(), "cancelled"
        desk.metrics.add("server.requests")
        try:
            with desk.gate.entered():
                yield desk
            ended = "answered"
        except web.HTTPException:
            ended = "refused"
            raise
        except Exception as exc:
            if _left(request, exc):
                raise
            refusal = refusal_of(exc)
            ended = "refused" if refusal.status < 500 else "failed"
            raise refusal from exc
        finally:
            desk.metrics.add(f"server.{ended}")
            desk.metrics.add("server.request_seconds", time.perf_counter() - began)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """The JSON object that was sent. Raises Refusal; HTTPException for too large a one."""
        try:
            async with asyncio.timeout(self._config.server.read_s):
                data = await request.read()
        except TimeoutError:
            late = "The request did not arrive."
            raise Refusal(408, late, headers={"Connection": "close"}) from None
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise Refusal(400, f"The body is not JSON: {exc}.", code="invalid_json") from None
        if not isinstance(body, dict):
            raise Refusal(400, "The body is no JSON object.", code="invalid_json")
        return body

    def _answers(self, read: Read) -> Handler:
        """Chat completions or completions."""

        async def handle(request: web.Request) -> web.StreamResponse:
            async with self._entered(request) as desk:
                asked = read(await self._body(request), self._defaults)
                reply = Reply(asked, desk.words)
                if asked.stream:
                    return await self._stream(request, desk, asked, reply)
                results = await desk.answer(asked)
                _count(desk, *(result.usage for result in results))
                ids = await desk.ids(asked) if asked.echo else ()
                return web.json_response(reply.whole(results, ids))

        return handle

    async def _stream(
        self, request: web.Request, desk: Desk, asked: Asked, reply: Reply
    ) -> web.StreamResponse:
        events = Events(request, self._config.server.write_s)
        try:
            async with aclosing(desk.stream(asked)) as source:
                async for news in source:
                    if not isinstance(news, Completion):
                        await events.send(reply.delta(news, first=not events.begun))
                        continue
                    _count(desk, news.usage)
                    if not events.begun:  # the shards of a split context answer at once
                        await events.send(reply.delta(news.text, first=True))
                    for piece in reply.end(news):
                        await events.send(piece)
        except Exception as exc:
            if not events.begun or _left(request, exc):
                raise
            desk.metrics.add("server.broken_streams")
            await events.send(refusal_of(exc).to_json())
        return await events.end()

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        async with self._entered(request) as desk:
            tokens = await desk.tokens(read_counted(await self._body(request)))
            limit = desk.backend.info.limit
            said = {"count": len(tokens), "max_model_len": limit, "tokens": tokens}
            return web.json_response(said)

    async def _models(self, request: web.Request) -> web.Response:
        desk = self._desk(request)
        return web.json_response({"object": "list", "data": await models(desk)})

    async def _model(self, request: web.Request) -> web.Response:
        desk, name = self._desk(request), request.match_info["name"]
        for model in await models(desk):
            if model["id"] == name:
                return web.json_response(model)
        none = f"There is no model {name!r}. GET /v1/models lists what there is."
        raise Refusal(404, none, field="model", code="model_not_found")

    async def _metrics(self, request: web.Request) -> web.Response:
        """Of the tenant who asks: how much others do is none of its business."""
        desk = self._desk(request)
        under_way = {"server.under_way": desk.gate.inside}
        text = exposition(desk.metrics.snapshot(), under_way)
        return web.Response(body=text.encode(), headers={"Content-Type": TYPE})


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _left(request: web.Request, exc: Exception) -> bool:
    """Whether an exception says that the client has gone: there is nobody to be told."""
    gone = request.transport is None or request.transport.is_closing()
    return gone and isinstance(exc, ConnectionError)


def _count(desk: Desk, *usages: Usage) -> None:
    usage = sum(usages, Usage())
    desk.metrics.add("server.cached_tokens", usage.cached_tokens)
    desk.metrics.add("server.computed_tokens", usage.computed_tokens)
    desk.metrics.add("server.output_tokens", usage.output_tokens)
