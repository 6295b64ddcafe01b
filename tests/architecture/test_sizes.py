"""Files of at most 300 lines, functions of at most 50: beyond that a part wants redrawing."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = {"preread": 300, "tools": 300, "training": 400}  # where the world is told that it reads of
FILES = {path: most for name, most in LINES.items() for path in (ROOT / name).rglob("*.py")}


def test_files_stay_small() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in FILES}
    long = {str(path): n for path, n in sizes.items() if n > FILES[path]}
    assert not long


def test_functions_stay_short() -> None:
    long = {
        f"{path}:{node.lineno} {node.name}": size
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > 50
    }
    assert not long


def test_no_mutable_globals_and_no_work_at_import() -> None:
    """Module level holds definitions and constants: no bare calls, no loops."""
    wrong = []
    for path in (ROOT / "preread").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            bare_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if bare_call or isinstance(node, ast.For | ast.While | ast.With):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong
