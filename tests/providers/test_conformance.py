"""The suite of all backends, over real HTTP against the simulated provider."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from preread.backend import Backend
from preread.providers.opening import connect
from preread.testing.conformance_backend import BackendConformance
from preread.testing.provider import Profile, Provider

CANNOT = {
    "test_what_is_forgotten_is_not_in_memory": "no provider lets a client make it forget",
}


class TestVllm(BackendConformance):
    """The dialect with everything: a server that counts, scores by token id and takes a salt. Its
    cache has blocks of one token here, so that counts can be compared exactly."""

    @pytest.fixture(autouse=True)
    async def _server(self, request: pytest.FixtureRequest) -> AsyncIterator[None]:
        if why := CANNOT.get(request.node.originalname):
            pytest.skip(why)
        profile = Profile(server="vllm", limit=2048, min_prefix=1, block=1, ttl_s=0.0)
        async with Provider(profile) as self.server:
            yield

    async def open(self) -> Backend:
        return await connect(f"openai:{self.server.url}", env={})
