"""Imports go down only, never sideways; heavy third parties live where the design puts them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "preread"
LAYER = {
    "blends": -1,
    **dict.fromkeys(("types", "errors", "prices"), 0),
    **dict.fromkeys(("backend", "config", "metrics", "kernels", "bridge"), 1),
    **dict.fromkeys(("models", "store", "capacity", "front"), 2),
    "tokens": 3,
    **dict.fromkeys(("engine", "foreign", "providers", "contexts", "batch", "responses"), 4),
    **dict.fromkeys(("home", "server", "pipeline", "cluster"), 5),
    **dict.fromkeys(("app", "testing"), 6),
    "cli": 7,
    **dict.fromkeys(("__init__", "__main__"), 8),
}
# Third parties that may be imported only below these places (prefixes of the module's path).
HOMES = {
    "torch": (
        "kernels",
        "models",
        "engine",
        "foreign",
        "tokens/parity",
        "store/codec",
        "testing",
        "app",
        "cli/doctor",
    ),
    "tokenizers": ("models", "testing"),
    "jinja2": ("models", "cli"),
    "llguidance": ("tokens/grammar",),
    "huggingface_hub": ("models",),
    "safetensors": ("models", "testing"),
    "typer": ("cli",),
    "rich": ("cli",),
    "transformers": ("foreign",),
    "pyarrow": ("batch/parquet",),
    "aiohttp": ("providers/http", "server", "testing/provider", "testing/simulation/routes"),
    "pickle": (),
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, also inside functions and TYPE_CHECKING blocks."""
    package = ("preread", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module == "preread":
                yield from ((node.lineno, f"preread.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def unit(path: Path) -> str:
    """The package or top-level module a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_layer() -> None:
    assert {unit(p) for p in ROOT.rglob("*.py")} <= set(LAYER)


def test_imports_go_down_only() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        me = unit(path)
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] != "preread" or len(parts) < 2 or parts[1] == me:
                continue
            if LAYER[parts[1]] >= LAYER[me]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_third_parties_stay_at_home() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).as_posix()
        for line, module in imports(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None and not place.startswith(homes):
                wrong.append(f"{place}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)
