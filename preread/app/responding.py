"""The response cache in front of a backend, as configured."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

from preread.backend import Backend
from preread.config import Config
from preread.home import make_home

if TYPE_CHECKING:
    from preread.responses.similar import Similar

FILE = "responses.sqlite"
TEXT_FILES = (".json", ".jinja", ".model", ".txt")  # of a model's folder, that are no weights


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
    return Cached(backend, book, similar, _reads(config))


def _reads(config: Config) -> str:
    """Digest of what shapes an answer besides the weights, their dtype and the request: this
    release, the tenant, the model's tokenizer, template and settings, how exactly KV is kept. Of
    somebody else's server: what can be known of it is in the backend's fingerprint."""
    from preread.app.compose import remote

    made = sha256(version("preread").encode())
    if config.store.tenant != "default":  # nor is one tenant answered what another has asked
        made.update(b"\0tenant\0" + config.store.tenant.encode())
    if not remote(config.model.backend):
        from preread.models.folder import resolve

        chosen = config.model
        settings = chosen.weights_precision, chosen.kv_precision, chosen.backend, config.store.codec
        made.update(repr(settings).encode())
        folder = resolve(chosen.model, weights=False)
        for file in sorted(folder.iterdir()):
            if file.suffix in TEXT_FILES:
                made.update(f"\0{file.name}\0".encode())
                made.update(sha256(file.read_bytes()).digest())
    return made.hexdigest()


def _similar(config: Config) -> Similar:
    from preread.providers.embeddings import Embeddings
    from preread.responses.similar import Similar

    chosen = config.responses
    server = Embeddings(chosen.embeddings, chosen.embedding_model, config.providers)
    return Similar(server, server.name, chosen.threshold, server.close)
