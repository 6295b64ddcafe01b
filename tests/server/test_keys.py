"""Keys and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.errors import ConfigError
from preread.server.keys import Keys, read_keys

A, B, C = "a" * 32, "b" * 32, "c" * 16


def write(folder: Path, text: str) -> str:
    path = folder / "keys.txt"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_a_key_says_whose_it_is(tmp_path: Path) -> None:
    file = write(tmp_path, f"# ours\nred:{A}\nblue: {B}  # theirs\n\n{C}\n")
    keys = read_keys("", file, tmp_path, "default")
    assert keys.tenants == ("red", "blue", "default") and not keys.open
    for key, tenant in ((A, "red"), (B, "blue"), (C, "default")):
        assert keys.tenant(f"Bearer {key}") == keys.tenant(f"bearer  {key}") == tenant
    for wrong in ("", A, "Bearer", "Bearer ", f"Bearer {A}x", f"Basic {A}", "Bearer \udcff"):
        assert keys.tenant(wrong) is None
    assert A not in repr(keys)


def test_a_key_with_a_hash_in_it_is_whole(tmp_path: Path) -> None:
    key = f"{A}#{B}"
    keys = read_keys("", write(tmp_path, f"red:{key} # theirs\n"), tmp_path, "default")
    assert keys.tenant(f"Bearer {key}") == "red" and keys.tenant(f"Bearer {A}") is None


def test_without_keys_everybody_is_the_default_tenant(tmp_path: Path) -> None:
    keys = read_keys("", "", tmp_path, "ours")
    assert keys.open and keys.tenant("") == keys.tenant("Bearer any") == "ours"


def test_one_key(tmp_path: Path) -> None:
    keys = read_keys(A, "", tmp_path, "ours")
    assert keys.tenant(f"Bearer {A}") == "ours" and keys.tenant("") is None


@pytest.mark.parametrize(
    "text",
    ["", "# none\n", "short\n", f"red:{A}\nblue:{A}\n", f":{A}\n", "with spaces in it 123\n"],
)
def test_a_file_that_does_not_say_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_keys("", write(tmp_path, text), tmp_path, "default")
    assert A not in str(refused.value)


def test_a_file_that_others_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, A)
    Path(file).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys("", file, tmp_path, "default")
    with pytest.raises(ConfigError, match="both"):
        read_keys(A, file, tmp_path, "default")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys("", "nowhere", tmp_path, "default")
    assert Keys({}, "x").open
