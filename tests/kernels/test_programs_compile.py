"""The Triton programs compile, on any machine that has Triton (`pip install --no-deps triton`; no
dependency, since torch's CUDA builds bring it). Its interpreter takes programs that its compiler
refuses."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from preread.kernels.cuda import attention_programs as attention
from preread.kernels.cuda import kv_programs as kv_writes
from preread.kernels.cuda import row_programs as rows
from preread.kernels.kv import grid

pytestmark = pytest.mark.slow
HOPPER = GPUTarget("cuda", 90, 32)
CODES = {"full": "bf16", "fp8": "fp8e4nv", "int8": "i8"}
LISTS = "starts trees tiles runs table items rows counts lengths slots".split()
FLOATS = ("part", "lse", "top", "scale")


def compiled(program, constants, kv: str = "full", **more: str) -> None:
    """Raises what the compiler finds."""
    signature = {
        name: "constexpr" if name in constants else more.get(name) or _type(name, kv)
        for name in program.arg_names
    }
    source = ASTSource(fn=program, signature=signature, constexprs=constants)
    triton.compile(source, target=HOPPER, options={"num_warps": 4, "num_stages": 2})


def _type(name: str, kv: str) -> str:
    if not name.endswith("_ptr"):
        return "fp32" if name in ("scale", "eps", "largest") else "i32"
    bare = name.removesuffix("_ptr")
    if bare in LISTS:
        return "*i32"
    if bare.endswith("scales"):
        return "*bf16" if kv == "full" else "*fp32"
    if bare in ("arena", "pages", "kv"):
        return f"*{CODES[kv]}"
    return "*fp32" if bare in FLOATS else "*bf16"


SIZES = {"FOLD": 4, "D": 80, "BD": 128, "BM": 16, "BN": 16}


@pytest.mark.parametrize("kv", CODES)
def test_attention(kv):
    for tree in (False, True):
        compiled(attention.tiles_program, {**SIZES, "PAGE": 16, "TREE": tree}, kv)
    compiled(attention.parts_program, SIZES, kv)
    compiled(attention.tail_program, {**SIZES, "PAGE": 16}, kv)


@pytest.mark.parametrize("kv", CODES)
def test_writing(kv):
    sizes = {"D": 80, "BD": 128, "HEADS": 8}
    if kv == "full":
        compiled(kv_writes.write_program, sizes, kv)
        return
    least, up, down = grid(kv)
    code = tl.int8 if kv == "int8" else tl.float8e4nv
    sizes |= {"CODE": code, "LEAST": least, "UP": up, "DOWN": down}
    compiled(kv_writes.write_codes_program, sizes, kv)
    compiled(kv_writes.rounded_program, sizes, kv)


def test_rows():
    compiled(rows.rotate_program, {"HALF": 40, "LANES": 64, "HEADS": 8, "NORM": True})
    compiled(rows.rotate_program, {"HALF": 40, "LANES": 64, "HEADS": 8, "NORM": False})
    compiled(rows.quantise_program, {"BLOCK": 1024}, q_ptr="*fp8e4nv")
