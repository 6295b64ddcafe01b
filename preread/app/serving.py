"""An engine behind HTTP: `preread serve`, and the same for tests and notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.config import Config, ServerSection
from preread.errors import ConfigError
from preread.server.desk import Desk
from preread.server.keys import Keys, read_keys
from preread.server.shelf import Shelf

if TYPE_CHECKING:
    from preread.app.engine import Engine
    from preread.contexts.opened import Opened
    from preread.models.text import Text
    from preread.types import Prefix


@contextmanager
def serve(engine: Engine, section: ServerSection | None = None, **knobs: Any) -> Iterator[str]:
    """Answer OpenAI's clients over HTTP until left (docs/server.md); yields their base URL, like
    http://127.0.0.1:8000/v1. section: all knobs of `[server]`, else as configured; knobs: single
    ones, like port=0. Leaving lets requests under way end. Raises ConfigError."""
    chosen = _chosen(section or engine.config.server, knobs)
    config = replace(engine.config, server=chosen)
    keys = keys_of(config)
    from preread.server.server import Server

    others = [tenant for tenant in keys.tenants if tenant != config.store.tenant]
    with ExitStack() as opened:
        desks = {config.store.tenant: _desk(engine, chosen)}
        for tenant in others:
            beside = opened.enter_context(engine.beside(tenant, len(others)))
            desks[tenant] = _desk(beside, chosen)
        server = Server(keys, desks, config)
        url = engine.run(server.start())
        try:
            yield url
        finally:
            engine.run(server.stop())


def keys_of(config: Config) -> Keys:
    """Who may ask. Raises ConfigError for what a server would refuse to start with: told before a
    model is loaded."""
    if find_spec("aiohttp") is None:
        raise ConfigError("The server needs aiohttp.", hint="pip install 'preread[server]'")
    from preread.server.door import Door

    chosen = config.server
    keys = read_keys(chosen.key, chosen.keys_file, config.home, config.store.tenant)
    Door(keys, chosen.host)
    return keys


def _chosen(section: ServerSection, knobs: dict[str, Any]) -> ServerSection:
    known = [field.name for field in fields(section)]
    for name in knobs:
        if name not in known:
            raise ConfigError(f"There is no server.{name}.", hint=f"Knobs: {', '.join(known)}.")
    return replace(section, **knobs)


def _desk(engine: Engine, chosen: ServerSection) -> Desk:
    config = replace(engine.config, server=chosen)

    def keep(opened: Opened) -> Opened:
        return engine._keep(opened).opened

    shelf = Shelf(engine.crowd, engine.catalog, config, keep)
    text, loaded = engine.text, engine._parts.loaded
    words: TextWords | None = None
    if text is not None:  # a model's vocabulary may be padded beyond its tokenizer's
        padded = loaded.decoder.vocab_size if loaded else 0
        words = TextWords(text, max(padded, text.tokenizer.vocab_size))
    return Desk(
        engine.crowd,
        shelf,
        config,
        name=config.server.name or served_name(engine.info.model),
        words=words,
        metrics=engine.counters,
    )


def served_name(model: str) -> str:
    """What requests call a model: a folder's place on this machine is nobody's business."""
    return Path(model).name if Path(model).is_absolute() else model


class TextWords:
    """See preread.server.words.Words."""

    def __init__(self, text: Text, vocabulary: int) -> None:
        self._text = text
        self._vocabulary = vocabulary

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    def lay_out(self, prefix: Prefix, question: str | None) -> list[int]:
        chat = self._text.chat
        ids = chat.prefix(prefix) if question is None else chat.whole(prefix, question)
        return list(ids.tolist())

    def encode(self, text: str, special: bool) -> list[int]:
        tokenizer = self._text.tokenizer
        return tokenizer.prompt_tokens(text) if special else tokenizer.encode_text(text)

    def piece(self, token: int) -> bytes:
        return self._text.tokenizer.token_bytes(token)
