"""Which paths the simulated provider answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from preread.testing.simulation.job import BadRequest
from preread.testing.simulation.openai import messages

if TYPE_CHECKING:
    from preread.testing.provider import Provider

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(provider: Provider) -> list[web.RouteDef]:
    """All dialects at once; what only some servers have is there for those."""

    async def summed(request: web.Request) -> web.Response:
        from preread.testing.provider import summary

        return web.json_response(summary(provider))

    return [
        web.get("/simulation", summed),
        *_openai(provider),
        *_anthropic(provider),
        *_gemini(provider),
        *_ollama(provider),
    ]


def _openai(provider: Provider) -> list[web.RouteDef]:
    profile, words = provider.profile, provider.words
    size = {"max_model_len": profile.limit} if profile.server == "vllm" else {}
    models = [{"id": name, "object": "model", **size} for name in profile.model.split(",")]

    async def tokenize(request: web.Request) -> web.Response:
        return web.json_response(provider.openai.count(await request.json()))

    async def template(request: web.Request) -> web.Response:
        body = await request.json()
        ids = words.layout(messages(body), body.get("add_generation_prompt", True))
        return web.json_response({"prompt": words.decode(ids)})

    found = [
        web.post("/v1/chat/completions", provider.handler(provider.openai)),
        web.post("/v1/completions", provider.handler(provider.openai)),
        web.get("/v1/models", _says({"object": "list", "data": models})),
    ]
    if profile.server == "vllm":
        found.append(web.get("/version", _says({"version": "0.33.0"})))
        found.append(web.post("/tokenize", tokenize))
    if profile.server == "sglang":
        found.append(web.get("/get_model_info", _says({"model_path": profile.model})))
    if profile.server == "llama-server":
        settings = {
            "default_generation_settings": {"n_ctx": profile.limit},
            "total_slots": profile.slots,
        }
        found.append(web.get("/props", _says(settings)))
        found.append(web.post("/tokenize", tokenize))
        found.append(web.post("/apply-template", template))
    return found


def _anthropic(provider: Provider) -> list[web.RouteDef]:
    async def count(request: web.Request) -> web.Response:
        return web.json_response(provider.anthropic.count(await request.json()))

    model = {"id": provider.profile.model, "max_input_tokens": provider.profile.limit}
    return [
        web.post("/v1/messages", provider.handler(provider.anthropic)),
        web.post("/v1/messages/count_tokens", count),
        web.get(f"/v1/models/{provider.profile.model}", _says(model)),
    ]


def _gemini(provider: Provider) -> list[web.RouteDef]:
    speaker, model = provider.gemini, provider.profile.model

    async def count(request: web.Request) -> web.Response:
        return web.json_response(speaker.count(await request.json()))

    async def contents(request: web.Request) -> web.Response:
        name = f"cachedContents/{request.match_info.get('name', '')}"
        try:
            if request.method == "DELETE":
                speaker.contents.pop(name, None)
                return web.json_response({})
            body = await request.json()
            if request.method == "PATCH":
                return web.json_response(speaker.renew(name, body, time.monotonic()))
            return web.json_response(speaker.keep(body, time.monotonic()))
        except BadRequest as exc:
            error = speaker.error(exc.status, exc.code, str(exc))
            return web.json_response(error, status=exc.status)

    path = f"/v1beta/models/{model}"
    return [
        web.post(f"{path}:generateContent", provider.handler(speaker)),
        web.post(f"{path}:countTokens", count),
        web.get(path, _says({"inputTokenLimit": provider.profile.limit})),
        web.post("/v1beta/cachedContents", contents),
        web.patch("/v1beta/cachedContents/{name}", contents),
        web.delete("/v1beta/cachedContents/{name}", contents),
    ]


def _ollama(provider: Provider) -> list[web.RouteDef]:
    speaker, model = provider.ollama, provider.profile.model

    async def show(request: web.Request) -> web.Response:
        known = (await request.json()).get("model") == model
        said = speaker.show() if known else speaker.error(404, "", "model not found")
        return web.json_response(said, status=200 if known else 404)

    return [
        web.post("/api/chat", provider.handler(speaker)),
        web.post("/api/generate", provider.handler(speaker)),
        web.post("/api/show", show),
        web.get("/api/tags", _says({"models": [{"name": model}]})),
    ]


def _says(value: dict[str, Any]) -> Handler:
    async def say(request: web.Request) -> web.Response:
        return web.json_response(value)

    return say
