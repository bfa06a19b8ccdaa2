"""Kernels are built for a Hopper GPU, without one: where numbers come as float64, as torch.compile passes them; and as
training launches them, to see what Triton makes of their layouts."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import itertools
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hpc.kernels import adamw_ema, e4m3, gelu, modulate, qk_norm_rope

SCALARS = ("eps keep rate one_minus_beta1 beta2 one_minus_beta2 root_correction e0_rate e1_rate e2_rate").split()
SUMS = {name + "_ptr": "*fp32" for name in "amax inverse scale counted sums gate shift mean r cos sin".split()}
EIGHT = {name: "*fp8e4nv" for name in ("rows_ptr", "columns_ptr")}

def build(kernel, constants, options=None, aligned=False, **given):
    types = SUMS | EIGHT | dict.fromkeys(SCALARS, "fp64") | given
    signature = {name: "constexpr" if name in constants else
                 types.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in kernel.arg_names}
    at = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
             if aligned and signature[name] not in ("constexpr", "fp64")}
    return triton.compile(ASTSource(kernel, signature, at, attrs), target=GPUTarget("cuda", 90, 32), options=options)
"""

DOUBLES = """
heads = dict(PER_GROUP=1, HQ=4, HK=4, HALF=16, K=True, V=False, ROPE=True, BLOCK_Q=4, BLOCK_K=4, BLOCK_C=16)
build(qk_norm_rope._forward, heads)
build(qk_norm_rope._backward, heads)
build(modulate._forward, dict(D=256, GATED=True, OUT=True, AMAX=True, BLOCK=256))
build(modulate._backward, dict(D=256, GATED=False, STREAM=True, BLOCK=256))
build(gelu._backward, dict(BLOCK=2048))
tile = e4m3.config()
options = {"num_warps": tile.pop("num_warps")}
for kernel, given in itertools.product((gelu._quantize, modulate._quantize), (True, False)):
    build(kernel, dict(D=256, GIVEN=given, FP8_MAX=e4m3.FP8_MAX, **tile), options, aligned=True)
types = dict(GRAD=tl.float32, STATE=tl.float32, COPY_TYPE=tl.bfloat16)
for counted in (True, False):
    build(adamw_ema._step, types | dict(SCALED=True, COPY=False, COUNTED=counted, EMAS=1, ALIGNED=True, CHUNK=2048,
          BLOCK=1024), table_ptr="*i64", chunks_ptr="*i32")
print("built")
"""

TURNED = """
heads = dict(PER_GROUP=1, HQ=16, HK=16, HALF=64, K=True, V=False, ROPE=True, BLOCK_Q=8, BLOCK_K=8, BLOCK_C=64)
built = build(qk_norm_rope._backward, heads, {"num_warps": qk_norm_rope.config(backward=True)["warps"]}, aligned=True)
print([line for line in built.asm["ttgir"].splitlines() if "convert_layout" in line and "8x64x" in line])
"""


def built(code: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE + code], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_numbers_of_float64() -> None:
    assert built(DOUBLES) == "built"


def test_no_tile_of_heads_is_turned_in_shared_memory() -> None:
    """As it was with 2 warps, where a row of the table has no fewer numbers than there are threads."""
    assert built(TURNED) == "[]"
