"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy in between must not collect them
}


class Events:
    """One stream of them, begun with its first: until then an error may still have a status. A
    client that takes nothing for `write_s` seconds has gone."""

    def __init__(self, request: web.Request, write_s: float) -> None:
        self._request = request
        self._write_s = write_s
        self._response: web.StreamResponse | None = None

    @property
    def begun(self) -> bool:
        return self._response is not None

    async def send(self, value: dict[str, Any]) -> None:
        """Raises ConnectionError when the client has gone."""
        await self._write(json.dumps(value, ensure_ascii=False))

    async def end(self) -> web.StreamResponse:
        """The response, complete."""
        await self._write("[DONE]")
        assert self._response is not None
        return self._response

    async def _write(self, data: str) -> None:
        async with _taken(self._request, self._write_s):
            if self._response is None:
                self._response = web.StreamResponse(headers=HEADERS)
                await self._response.prepare(self._request)
            await self._response.write(f"data: {data}\n\n".encode())


async def sent(
    request: web.Request, response: web.StreamResponse, write_s: float
) -> web.StreamResponse:
    """The same, sent to its end. Raises ConnectionError when the client has gone."""
    async with _taken(request, write_s):
        await response.prepare(request)
        await response.write_eof()
    return response


@asynccontextmanager
async def _taken(request: web.Request, write_s: float) -> AsyncIterator[None]:
    """Writing. A client that takes nothing for so long is cut off: what it was to be sent lies in
    memory."""
    try:
        async with asyncio.timeout(write_s):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("The client takes nothing.") from None
