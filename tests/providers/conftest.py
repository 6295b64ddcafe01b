from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from preread.config import ProvidersSection
from preread.providers.backend import RemoteBackend
from preread.providers.opening import connect
from preread.testing.provider import Profile, Provider

Opened = Callable[..., Awaitable[tuple[Provider, RemoteBackend]]]
QUICK = ProvidersSection(timeout_s=5.0)


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Start a simulated provider and a backend on it; both end with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            kind: str = "openai",
            *,
            answer: Any = None,
            env: dict[str, str] | None = None,
            config: dict[str, Any] | None = None,
            model: str = "",
            **profile: Any,
        ) -> tuple[Provider, RemoteBackend]:
            given = Profile(**{"min_prefix": 64, "block": 16, **profile})
            more = {"answer": answer} if answer else {}
            server = await stack.enter_async_context(Provider(given, **more))
            settings = replace(QUICK, **(config or {}))
            backend = await connect(f"{kind}:{server.url}", model, settings, env=env or {})
            stack.push_async_callback(backend.close)
            return server, backend

        yield start
