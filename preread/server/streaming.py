"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
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
        await self._response.write_eof()
        return self._response

    async def _write(self, data: str) -> None:
        try:
            async with asyncio.timeout(self._write_s):
                if self._response is None:
                    self._response = web.StreamResponse(headers=HEADERS)
                    await self._response.prepare(self._request)
                await self._response.write(f"data: {data}\n\n".encode())
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("The client takes nothing.") from None
