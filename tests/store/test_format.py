"""docs/format.md is the truth: a reader written from it alone reads what we write."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preread.store.chunk import Fault
from preread.store.keys import Geometry
from tests.attacks.tools import FIELDS, FINGERPRINT, GEOMETRY, Den, chunk_files, forge
from tests.store import reference_reader as reference

ROOT = Path(__file__).parents[2]
READER = Path(reference.__file__)


def test_the_reader_stands_alone() -> None:
    source = READER.read_text()
    names = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    ]  # fmt: skip
    assert set(names) - set(sys.stdlib_module_names) <= {"xxhash", "__future__"}
    assert len(source.splitlines()) <= 100


@pytest.mark.parametrize(
    "geometry",
    [GEOMETRY, Geometry(2, 3, 4, "bfloat16", 8, 1 << 20), Geometry(2, 3, 4, "float16", 8, 600)],
)
def test_it_finds_and_reads_every_chunk(tmp_path: Path, geometry: Geometry) -> None:
    den = Den(tmp_path, geometry)
    links = reference.chain(bytes.fromhex(FINGERPRINT), "default", list(den.tokens), 8)
    read = 0
    for n, link in enumerate(links):
        for box in geometry.boxes(8 * n, min(8 * n + 8, len(den.tokens))):
            name = reference.key(link, list(box), "raw").hex()
            data = (tmp_path / "chunks" / name[0] / name[1] / f"{name}.kv").read_bytes()
            header, payload = reference.read(data)
            assert [header[field] for field in reference.RANGES] == list(box)
            assert header["fingerprint"].hex() == FINGERPRINT and header["chain"] == link
            dtype = getattr(torch, reference.DTYPES[header["dtype"]][0])
            tensor = torch.frombuffer(bytearray(payload), dtype=dtype)
            assert torch.equal(tensor.view(box.shape(header["head_dim"])), den.truth.source(box))
            read += 1
    assert read == len(den.keys) == len(chunk_files(tmp_path))


def test_it_refuses_what_we_refuse(tmp_path: Path) -> None:
    den = Den(tmp_path)
    original = den.file(0).read_bytes()
    for offset in range(len(original)):
        data = bytearray(original)
        data[offset] ^= 1
        with pytest.raises(ValueError):
            reference.read(bytes(data))
    for name in FIELDS.keys() - {"fingerprint", "tenant"}:  # those only who asks can judge
        forge(
            den.file(0), name, bytes(FIELDS[name][1]) if name[:3] in ("mag", "key", "cha") else 77
        )
        with pytest.raises(ValueError):
            reference.read(den.file(0).read_bytes())
        den.file(0).write_bytes(original)


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    den = Den(tmp_path)
    den.file(1).write_bytes(b"no")
    command = [sys.executable, str(READER), str(den.file(0)), str(den.file(1))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].endswith("[0, 8, 0, 1, 0, 2] float32 512 bytes")
    assert out[1].endswith("is no chunk: shorter than a header")


def test_the_table_says_the_same() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| \w+ \| (\w+) \|", text, re.MULTILINE)
    table = {name: (int(offset), int(size)) for offset, size, name in rows}
    assert table == FIELDS == {name: field[:2] for name, field in reference.FIELDS.items()}
    ends = [offset + size for offset, size in table.values()]
    assert [0, *ends] == [*(offset for offset, _ in table.values()), 256]


def test_every_reason_is_explained() -> None:
    text = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    assert not [fault for fault in Fault if f"`{fault.value}`" not in text]
