"""Keys, tenants, shared namespaces and epochs, from the configuration to the disk."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from preread.app.compose import Parts, open_parts
from preread.config import load_config
from preread.errors import ConfigError, HomeError
from preread.home import open_keyring, open_upkeep
from preread.store.chunk import SEALED, opening
from preread.testing.models import write_tiny_model
from preread.types import Built, Prefix

KEY, OTHER = "ab12" * 16, "cd34" * 16
PREFIX = Prefix("a secret handbook " * 30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_model(path, "qwen3", seed=1)
    return str(path)


def built(tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> Built:
    """What a new process that is configured so finds of the prefix and keeps."""
    return with_parts(tiny, home, monkeypatch, env)[0]


def with_parts(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> tuple[Built, Parts]:
    async def work(parts: Parts) -> Built:
        try:
            return await parts.backend.build(PREFIX)
        finally:
            await parts.backend.close()

    with monkeypatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        parts = open_parts(tiny, home=home)
        return asyncio.run(work(parts)), parts


def values(home: Path) -> list[bytes]:
    return [path.read_bytes() for path in (home / "kv").rglob("*.kv")]


def test_sealed_from_end_to_end(tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(tiny, home, monkeypatch, PREREAD_KEY=KEY)
    assert (first.loaded_tokens, first.stored) == (0, True)
    assert [opening(value)[0] for value in values(home)] == [SEALED] * len(first.chunk_keys)
    again = built(tiny, home, monkeypatch, PREREAD_KEY=KEY)
    assert again.loaded_tokens == again.tokens and again.chunk_keys == first.chunk_keys
    report = open_upkeep(load_config(home)).verify(first.chunk_keys)  # needs no key
    assert (report.ok, report.missing) == (len(first.chunk_keys), ())
    for env in ({}, {"PREREAD_KEY": OTHER}):
        assert built(tiny, home, monkeypatch, **env).loaded_tokens == 0
    rotated = built(tiny, home, monkeypatch, PREREAD_KEY=f"{OTHER} {KEY}")
    assert rotated.loaded_tokens == rotated.tokens


def test_tenants_and_shared_namespaces(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tenant finds never depends on what another one stored, unless both name a place."""

    def loaded(**env: str) -> int:
        return built(tiny, home, monkeypatch, **env).loaded_tokens

    alice = {"PREREAD_STORE_TENANT": "alice"}
    bob = {"PREREAD_STORE_TENANT": "bob"}
    library = {"PREREAD_STORE_SHARED": "library"}
    assert loaded(**alice) == 0 < loaded(**alice)
    assert loaded(**bob) == 0 < loaded(**bob)
    assert loaded(PREREAD_STORE_TENANT="library") == 0
    assert loaded(**alice, **library) == 0 < loaded(**bob, **library)


@pytest.mark.parametrize("key", ["", KEY])
def test_a_raised_epoch_erases_at_once(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    env = {"PREREAD_KEY": key} if key else {}
    built(tiny, home, monkeypatch, **env)
    again, parts = with_parts(tiny, home, monkeypatch, env)
    assert again.loaded_tokens == again.tokens
    model = f"model:{parts.backend.info.fingerprint}"
    for scope in ("tenant:default", f"{model}@tenant:default", model):
        parts.catalog.bump(scope)
        after = built(tiny, home, monkeypatch, **env)
        assert after.loaded_tokens == 0 and not set(after.chunk_keys) & set(again.chunk_keys)
        assert built(tiny, home, monkeypatch, **env).loaded_tokens == after.tokens
    parts.catalog.bump("tenant:others")
    parts.catalog.bump(f"{model}@tenant:others")
    assert built(tiny, home, monkeypatch, **env).loaded_tokens == again.tokens


def test_what_cannot_be_asked_is_not_served(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch that nobody can tell: the KV might have been erased. It is computed."""
    built(tiny, home, monkeypatch)
    from preread.contexts.catalog.sqlite import SqliteCatalog

    def gone(self: SqliteCatalog, scopes: list[str]) -> list[int]:
        raise HomeError("the catalog is gone.", hint="Mend it.")

    monkeypatch.setattr(SqliteCatalog, "epochs", gone)
    after = built(tiny, home, monkeypatch)
    assert (after.loaded_tokens, after.stored) == (0, False)
    assert "the catalog is gone" in caplog.text


# --- the key file ---


def test_a_key_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# new\n{KEY}\n# old\n{OTHER}\n")
    path.chmod(0o600)
    (tmp_path / "config.toml").write_text('[store]\nkey_file = "keys"')
    ring = open_keyring(load_config(tmp_path, {}))
    assert ring is not None and ring.keys == (bytes.fromhex(KEY), bytes.fromhex(OTHER))
    assert not caplog.records
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        open_keyring(load_config(tmp_path, {}))
    assert "chmod 600" in caplog.text and KEY not in caplog.text


def test_key_files_that_do_not_do(tmp_path: Path) -> None:
    def opened(**env: str) -> None:
        open_keyring(load_config(tmp_path, env))

    with pytest.raises(ConfigError, match=r"both set.*Remove one"):
        opened(PREREAD_KEY=KEY, PREREAD_STORE_KEY_FILE="keys")
    with pytest.raises(ConfigError, match=r"keys: the key file cannot be read.*openssl"):
        opened(PREREAD_STORE_KEY_FILE="keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        opened(PREREAD_STORE_KEY_FILE="keys")
    assert open_keyring(load_config(tmp_path, {})) is None


def test_constant_time_is_for_what_is_shared(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another has stored is used, and told as computed; where nothing is shared it is refused,
    as it would promise what needs no promise."""
    env = {"PREREAD_STORE_CONSTANT_TIME": "1", "PREREAD_STORE_LOAD": "always"}
    with pytest.raises(ConfigError, match=r"store\.shared"):
        built(tiny, home, monkeypatch, **env)
    env["PREREAD_STORE_SHARED"] = "library"
    first = built(tiny, home, monkeypatch, **env, PREREAD_STORE_TENANT="alice")
    after, parts = with_parts(tiny, home, monkeypatch, env | {"PREREAD_STORE_TENANT": "bob"})
    assert (after.loaded_tokens, after.computed_tokens) == (0, after.tokens)
    assert after.chunk_keys == first.chunk_keys and after.brought == first.brought
    assert set(parts.metrics.snapshot()) == {"engine.prefix_computed_tokens"}
    open_ = {"PREREAD_STORE_SHARED": "library", "PREREAD_STORE_LOAD": "always"}
    assert built(tiny, home, monkeypatch, **open_).loaded_tokens == first.tokens
