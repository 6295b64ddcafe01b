"""Which paths the simulated provider answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from preread.testing.simulation.openai import OpenAISpeaker, messages

if TYPE_CHECKING:
    from preread.testing.provider import Provider

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(provider: Provider) -> list[web.RouteDef]:
    """All dialects at once; what only some servers have is there for those."""
    profile, words = provider.profile, provider.words
    openai = OpenAISpeaker(words, profile.server, profile.limit)
    size = {"max_model_len": profile.limit} if profile.server == "vllm" else {}
    models = [{"id": name, "object": "model", **size} for name in profile.model.split(",")]

    async def tokenize(request: web.Request) -> web.Response:
        return web.json_response(openai.count(await request.json()))

    async def template(request: web.Request) -> web.Response:
        ids = words.layout(messages(await request.json()))
        return web.json_response({"prompt": words.decode(ids)})

    found = [
        web.post("/v1/chat/completions", provider.handler("openai")),
        web.post("/v1/completions", provider.handler("openai")),
        web.get("/v1/models", _says({"object": "list", "data": models})),
        web.get("/simulation", _summary(provider)),
    ]
    if profile.server == "vllm":
        found += [
            web.get("/version", _says({"version": "0.33.0"})),
            web.post("/tokenize", tokenize),
        ]
    if profile.server == "sglang":
        found.append(web.get("/get_model_info", _says({"model_path": profile.model})))
    if profile.server == "llama-server":
        settings = {"default_generation_settings": {"n_ctx": profile.limit}}
        found += [
            web.get("/props", _says(settings)),
            web.post("/tokenize", tokenize),
            web.post("/apply-template", template),
        ]
    return found


def _says(value: dict[str, Any]) -> Handler:
    async def say(request: web.Request) -> web.Response:
        return web.json_response(value)

    return say


def _summary(provider: Provider) -> Handler:
    from preread.testing.provider import summary

    async def say(request: web.Request) -> web.Response:
        return web.json_response(summary(provider))

    return say
