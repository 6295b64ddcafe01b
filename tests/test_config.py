"""Every knob: where it comes from, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.config import default_home, load_config
from preread.errors import ConfigError


def write(home: Path, text: str) -> None:
    (home / "config.toml").write_text(text, encoding="utf-8")


def test_environment_over_file_over_default(tmp_path: Path) -> None:
    assert load_config(tmp_path, {}).context.max_tokens == 256
    write(tmp_path, "[context]\nmax_tokens = 5\nroute_shards = 2\n[store]\nfsync = false")
    config = load_config(tmp_path, {"PREREAD_CONTEXT_MAX_TOKENS": "7"})
    assert (config.context.max_tokens, config.context.route_shards) == (7, 2)
    assert config.store.fsync is False


def test_tiers_by_their_short_name(tmp_path: Path) -> None:
    assert load_config(tmp_path, {}).store.tiers == "disk"
    config = load_config(tmp_path, {"PREREAD_TIERS": "ram:1GB,redis://u:hush@a"})
    assert config.store.tiers == "ram:1GB,redis://u:hush@a" and "hush" not in repr(config)
    assert load_config(tmp_path, {"PREREAD_TIERS": "", "PREREAD_STORE_TIERS": "disk"}).store.tiers


def test_the_home(tmp_path: Path) -> None:
    assert default_home({"PREREAD_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "preread"
    assert default_home({}) == Path("~/.local/share/preread").expanduser()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[context]\nmax_tokens = 2.7", r"context\.max_tokens = 2\.7, expected a non-negative int"),
        ("[context]\nmax_tokens = -1", "non-negative int"),
        ("[context]\nmax_tokens = true", "non-negative int"),
        ("[context]\nmax_tokens = inf", "non-negative int"),
        ("[context]\nbusy_timeout_s = nan", "non-negative float"),
        ("[context]\nbusy_timeout_s = inf", "non-negative float"),
        ("[store]\nfsync = 'maybe'", r"store\.fsync = 'maybe', expected bool"),
        ("[model]\nmodel = 5", r"model\.model = 5, expected str"),
        ("[model]\nmodle = 'x'", r"unknown key model\.modle.*Keys: model"),
        ("[modle]", r"unknown section \[modle\].*Sections: model"),
        ("context = 5", "unknown section"),
        ("[context", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(tmp_path, {})
    assert "config.toml" in str(caught.value)


def test_a_whole_number_may_be_written_with_a_point(tmp_path: Path) -> None:
    write(tmp_path, "[context]\nmax_tokens = 8.0\nbusy_timeout_s = 2")
    assert load_config(tmp_path, {}).context.max_tokens == 8


def test_a_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$PREREAD_STORE_DISK_BUDGET_MB.*'much'"):
        load_config(tmp_path, {"PREREAD_STORE_DISK_BUDGET_MB": "much"})


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "")

    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_config(tmp_path, {})


def test_a_key_is_never_shown(tmp_path: Path) -> None:
    secret = "ab" * 32
    assert load_config(tmp_path, {"PREREAD_KEY": secret}).store.key == secret
    assert secret not in repr(load_config(tmp_path, {"PREREAD_KEY": secret}))
    write(tmp_path, "[store]\nkey = 123456")
    with pytest.raises(ConfigError, match=r"store\.key = …") as caught:
        load_config(tmp_path, {})
    assert "123456" not in str(caught.value)
