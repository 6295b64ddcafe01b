"""The response cache in front of a backend, as configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preread.backend import Backend
from preread.config import Config
from preread.home import make_home

if TYPE_CHECKING:
    from preread.responses.similar import Similar

FILE = "responses.sqlite"


def with_responses(backend: Backend, config: Config, *, keep: bool = False) -> Backend:
    """The backend itself, unless the configuration or `keep` asks for the cache. Raises StateError
    for a damaged file, ConfigError."""
    chosen = config.responses
    if not (keep or chosen.keep or chosen.embeddings):
        return backend
    from preread.responses.book import Book
    from preread.responses.cache import Cached

    make_home(config.home)
    similar = _similar(config) if chosen.embeddings else None
    book = Book.open(config.home / FILE, most=chosen.max_mb << 20, age_s=chosen.max_age_h * 3600)
    return Cached(backend, book, similar)


def _similar(config: Config) -> Similar:
    from preread.providers.embeddings import Embeddings
    from preread.responses.similar import Similar

    chosen = config.responses
    server = Embeddings(chosen.embeddings, chosen.embedding_model, config.providers)
    return Similar(server, server.name, chosen.threshold, server.close)
