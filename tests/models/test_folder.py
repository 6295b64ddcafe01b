from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preread.errors import ModelNotFound
from preread.models import folder as folders
from preread.models.folder import resolve, stamp
from preread.testing.models import write_tiny_model


class Hub:
    """A hub with one repository and a cache that may hold nothing, the text side or everything."""

    def __init__(self, repository: Path, cached: str = "") -> None:
        self.repository, self.cached, self.calls = repository, cached, list[dict[str, Any]]()

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.calls.append(options)
        wants_weights = "*.safetensors" in options["allow_patterns"]
        if options.get("local_files_only"):
            if not self.cached:
                raise FileNotFoundError("not cached")
            if self.cached == "text":
                return str(self.repository.with_name("text"))
        elif name != "owner/model":
            raise ConnectionError("no such host\n\nSee the log")
        return str(self.repository if wants_weights else self.repository.with_name("text"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "text")
    (tmp_path / "text" / "model.safetensors").unlink()
    return write_tiny_model(tmp_path / "all")


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def test_a_folder_is_itself(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(repository)) == repository
    monkeypatch.chdir(repository.parent)
    assert resolve("all") == Path("all")


@pytest.mark.parametrize("cached", ["", "text", "all"])
def test_what_the_cache_holds_needs_no_network(
    repository: Path, monkeypatch: pytest.MonkeyPatch, cached: str
) -> None:
    hub = connect(Hub(repository, cached), monkeypatch)
    assert resolve("owner/model") == repository
    online = [call for call in hub.calls if not call.get("local_files_only")]
    assert len(online) == (cached != "all")
    hub.calls.clear()
    assert resolve("owner/model", weights=False) == repository.with_name("text")
    assert len([c for c in hub.calls if not c.get("local_files_only")]) == (cached == "")


def test_only_json_templates_and_safetensors_are_fetched(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = connect(Hub(repository), monkeypatch)
    resolve("owner/model")
    assert set(hub.calls[-1]["allow_patterns"]) == {"*.json", "*.jinja", "*.safetensors"}


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "", "what is this"])
def test_what_is_no_name_is_said(name: str) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nor a hub id") as caught:
        resolve(name)
    assert "Qwen/Qwen3-0.6B" in str(caught.value)


def test_a_file_is_no_model(repository: Path) -> None:
    with pytest.raises(ModelNotFound):
        resolve(str(repository / "model.safetensors"))


def test_an_unreachable_hub_says_what_to_do(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(Hub(repository), monkeypatch)
    with pytest.raises(ModelNotFound, match=r"no such host See the log.*local folder"):
        resolve("owner/other")


def test_a_missing_reader_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "__file__", str(tmp_path / "models" / "folder.py"))
    with pytest.raises(ModelNotFound, match="reader model is missing"):
        resolve("reader")
    write_tiny_model(tmp_path / "assets" / "reader")
    assert resolve("reader") == tmp_path / "assets" / "reader"


def test_a_stamp_changes_with_the_file_and_not_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    first = stamp(file)
    assert stamp(file) == first
    file.write_bytes(b"22")
    assert stamp(file) != first
