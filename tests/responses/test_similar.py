"""The semantic cache: with an embedder of our own making, so that likeness is known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import preread
from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.config import ProvidersSection
from preread.contexts.rows import Row, collect
from preread.errors import ConfigError, EngineError, ProviderError, RequestError
from preread.providers.embeddings import Embeddings
from preread.responses.book import Book
from preread.responses.cache import Cached
from preread.responses.similar import Similar
from preread.testing.backend import FakeBackend
from preread.testing.models import write_tiny_model
from preread.testing.replies import Reply
from preread.types import CachedResponse, Message, Prefix

WORDS = ("when", "open", "shop", "price", "chair", "not", "sketch", "deposit")
HEAD = Prefix("the rules of the shop")


def vector(text: str) -> list[float]:
    """Counts of known words: a negation changes one of several."""
    words = text.lower().replace("?", "").split()
    return [float(words.count(word)) + 1e-3 for word in WORDS]


async def embed(texts: Sequence[str]) -> list[list[float]]:
    return [vector(text) for text in texts]


def front(path: Path, threshold: float = 0.95, name: str = "words", by: Any = embed) -> Cached:
    backend = FakeBackend(lambda prefix, text: Reply(f"to {text}"))
    book = Book.open(path / "r.sqlite", most=1 << 24, age_s=1e9)
    return Cached(backend, book, Similar(by, name, threshold))


def asked(made: Cached, *texts: str, prefix: Prefix = HEAD, work: Any = None) -> list[Row]:
    return asyncio.run(collect(made, RequestBatch(work or Generate(), list(texts), (prefix,))))


def test_a_similar_question_gets_the_answer_and_says_so(tmp_path: Path) -> None:
    made = front(tmp_path)
    (first,) = asked(made, "When open shop?")
    assert first.response is None
    (like, other) = asked(made, "shop open when", "price chair")
    assert like.text == "to When open shop?" and like.usage == preread.types.Usage()
    assert like.response == CachedResponse(1.0, "When open shop?")
    assert other.response is None and other.text == "to price chair"
    (same,) = asked(made, "When open shop?")
    assert same.response == CachedResponse()  # the same request, not one that is like it


def test_the_threshold_and_what_is_shown(tmp_path: Path) -> None:
    made = front(tmp_path, threshold=0.8)
    asked(made, "when open shop")
    (near,) = asked(made, "when open")
    assert near.response is not None and near.response.question == "when open shop"
    assert near.response.similarity == pytest.approx((2 / 3) ** 0.5, abs=2e-3)
    assert asked(front(tmp_path, threshold=0.83), "open shop")[0].response is None


def test_a_negation_passes_for_the_question(tmp_path: Path) -> None:
    """The trap that the documentation warns of, as it is: it is why results show the question."""
    made = front(tmp_path, threshold=0.85)
    asked(made, "when open shop")
    (wrong,) = asked(made, "when not open shop")
    assert wrong.response is not None and wrong.response.question == "when open shop"


@pytest.mark.parametrize(
    ("prefix", "work"),
    [
        (Prefix("other rules"), Generate()),
        (Prefix(HEAD.system, (Message("user", "hello"),)), Generate()),
        (HEAD, Generate(max_tokens=3)),
    ],
)
def test_only_on_the_same_prefix_with_the_same_options(
    tmp_path: Path, prefix: Prefix, work: Generate
) -> None:
    made = front(tmp_path)
    asked(made, "when open shop")
    (row,) = asked(made, "shop when open", prefix=prefix, work=work)
    assert row.response is None


def test_other_embeddings_are_not_compared(tmp_path: Path) -> None:
    asked(front(tmp_path, name="one"), "when open shop")
    assert asked(front(tmp_path, name="two"), "shop when open")[0].response is None
    assert asked(front(tmp_path, name="one"), "shop open when")[0].response is not None


@pytest.mark.parametrize("work", [Choose(("a", "b")), LogLikelihood(["x"])])
def test_scores_are_refused(tmp_path: Path, work: Any) -> None:
    with pytest.raises(RequestError, match="serves no scores"):
        asked(front(tmp_path), "when", work=work)


def test_an_embedder_that_answers_nonsense(tmp_path: Path) -> None:
    async def short(texts: Sequence[str]) -> list[list[float]]:
        return []

    async def nan(texts: Sequence[str]) -> list[list[float]]:
        return [[float("nan")] for _ in texts]

    for by in (short, nan):
        with pytest.raises(EngineError, match="one vector of numbers per text"):
            asked(front(tmp_path, by=by), "when")
    with pytest.raises(RequestError, match="threshold"):
        Similar(embed, "x", 0)


class _Server(BaseHTTPRequestHandler):
    """POST /v1/embeddings, its rows the other way round; "boom" is a fault."""

    def do_POST(self) -> None:
        import json

        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/embeddings" and body["model"] == "words"
        rows = [{"index": i, "embedding": vector(t)} for i, t in enumerate(body["input"])]
        rows = rows[1:] if "short" in body["input"] else rows
        data = json.dumps({"data": rows[::-1]}).encode()
        self.send_response(500 if "boom" in body["input"] else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def embeddings() -> Iterator[str]:
    """The URL of a server that knows a few words."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def url() -> Iterator[str]:
    with embeddings() as found:
        yield found


def test_embeddings_over_http(url: str) -> None:
    async def ask(*texts: str) -> list[list[float]]:
        made = Embeddings(f"{url}/v1/", "words", ProvidersSection(), env={})
        try:
            return await made(texts)
        finally:
            await made.close()

    many = [f"open {i}" if i % 2 else f"price {i}" for i in range(600)]
    assert asyncio.run(ask(*many)) == [vector(text) for text in many]
    for text in ("boom", "short"):
        with pytest.raises(ProviderError, match="words at"):
            asyncio.run(ask("a", text))
    with pytest.raises(ConfigError, match="embedding_model"):
        Embeddings(url, "", ProvidersSection(), env={})
    with pytest.raises(ConfigError, match="no URL"):
        Embeddings("localhost:80", "m", ProvidersSection(), env={})


def test_configured(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_RESPONSES_EMBEDDINGS", url)
    monkeypatch.setenv("PREREAD_RESPONSES_EMBEDDING_MODEL", "words")
    write_tiny_model(tmp_path, "qwen3", seed=1)
    (tmp_path / "d.md").write_text("# Shop\nOpen at nine.\n")
    with preread.open(str(tmp_path), home=tmp_path / "home") as engine:
        shop = engine.context("shop", tmp_path / "d.md")
        first = shop.ask("When open shop?", max_tokens=4)
        like = shop.ask("shop open when", max_tokens=4)
        assert like.text == first.text
        assert like.cached_response == CachedResponse(1.0, "When open shop?")
        with pytest.raises(RequestError, match="serves no scores"):
            shop.choose("Open?", ["yes", "no"])
