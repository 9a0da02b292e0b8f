"""What the GPU kernels of `selective_scan` compute of dt and z: softplus, its derivative, the gate."""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

from dimba_kernels.selective_scan.gpu_rows import LOG2E


@triton.jit
def _log1p_by_e(e, EXACT: tl.constexpr):
    """log(1 + e) / e for e from 0 to 1: polynomials of least relative error, to 2e-7 if EXACT, else to 6e-5."""
    if EXACT:
        p = 0.00523269462 * e - 0.0295052433
        p = p * e + 0.0782259652
        p = p * e - 0.136632475
        p = p * e + 0.19106008
        p = p * e - 0.248429827
        p = p * e + 0.333190969
        p = p * e - 0.499994931
        return p * e + 0.99999997
    else:
        p = 0.0413473051 * e - 0.157427236
        p = p * e + 0.306300969
        p = p * e - 0.496977822
        return p * e + 0.99994328


@triton.jit
def _reciprocal(x, FAST: tl.constexpr):
    """1 / x. FAST: the GPU's own, good to one bit; Triton's division takes more steps."""
    if FAST:
        reciprocal: tl.constexpr = "rcp.approx.ftz.f32 $0, $1;"
        return tl.inline_asm_elementwise(reciprocal, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def step_size(raw, bias, valid, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, FAST: tl.constexpr):
    """dt as the recurrence takes it, 0 where not valid, and its derivative by `raw`."""
    x = raw + bias
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        dt = tl.maximum(x, 0.0) + e * _log1p_by_e(e, EXACT)
        slope = tl.where(x >= 0, 1.0, e) * _reciprocal(1.0 + e, FAST)
    else:
        dt = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    return tl.where(valid, dt, 0.0), tl.where(valid, slope, 0.0)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x))."""
    return _reciprocal(1.0 + tl.exp2(-x * LOG2E), FAST)
