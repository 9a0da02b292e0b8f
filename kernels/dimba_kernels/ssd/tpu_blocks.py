"""A launch of a TPU kernel of `ssd`: which block of which array a step of the grid sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dimba_kernels.ssd.tpu_layout import Plan
from dimba_kernels.ssd.tpu_operands import Operand, OperandShape
from dimba_kernels.tpu_call import tpu_call

Scratch = dict[str, tuple[tuple[int, ...], Any] | OperandShape]


class Block(NamedTuple):
    """An array of a launch, in blocks: `index` maps (row, block of heads, chunk) to the block."""

    value: Any  # an array, or a ShapeDtypeStruct for an output
    shape: tuple[int, ...]
    index: Callable[..., tuple[Any, ...]]
    memory: Any = None


def launch(
    kernel: Callable[..., None],
    plan: Plan,
    inputs: Mapping[str, Block | None],
    outputs: Mapping[str, Block | None],
    scratch: Scratch,
    name: str,
    backwards: bool = False,
) -> dict[str, jax.Array]:
    """Run `kernel(plan, refs, made)` over rows x blocks of heads x chunks, in the order of the scan.

    refs are inputs and scratch by name, and `chunk`; made are the outputs. `backwards`: against the order
    of the scan. Inputs and outputs that are None are None there.
    """
    given = {key: block for key, block in inputs.items() if block is not None}
    results = {key: block for key, block in outputs.items() if block is not None}

    def body(*all_refs: Any) -> None:
        first, second = len(given), len(given) + len(results)
        refs = dict.fromkeys(inputs) | dict(zip(given, all_refs[:first], strict=True))
        for (key, shape), ref in zip(scratch.items(), all_refs[second:], strict=True):
            refs[key] = Operand(ref, shape.dtype) if isinstance(shape, OperandShape) else ref
        made = dict.fromkeys(outputs) | dict(zip(results, all_refs[first:second], strict=True))
        chunk = chunk_at(plan, pl.program_id(0), pl.program_id(2), backwards)
        kernel(plan, SimpleNamespace(**refs, chunk=chunk), SimpleNamespace(**made))

    def spec(block: Block) -> pl.BlockSpec:
        def index(row: Any, heads: Any, step: Any) -> tuple[Any, ...]:
            return block.index(row, heads, chunk_at(plan, row, step, backwards))

        return pl.BlockSpec(block.shape, index, memory_space=block.memory)

    call = tpu_call(
        body,
        grid=(plan.launch_rows, plan.groups * plan.blocks, plan.chunks),
        in_specs=[spec(block) for block in given.values()],
        out_specs=[spec(block) for block in results.values()],
        out_shape=[block.value for block in results.values()],
        scratch_shapes=[
            shape.memory if isinstance(shape, OperandShape) else pltpu.VMEM(*shape) for shape in scratch.values()
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=plan.vmem
        ),
        name=name,
    )
    return dict(zip(results, call(*[block.value for block in given.values()]), strict=True))


def chunk_at(plan: Plan, row: Any, step: Any, backwards: bool) -> Any:
    """The chunk at a step of the walk."""
    last = plan.chunks - 1
    if len(plan.directions) == 1:
        return last - step if plan.directions[0] != backwards else step
    flipped = (row >= plan.rows) != backwards
    return jnp.where(flipped, last - step, step)


def sequence(plan: Plan, value: Any) -> Block:
    """(rows, length, lanes)."""
    return Block(value, (1, plan.chunk, plan.block_lanes), lambda row, heads, chunk: (_row(plan, row), chunk, heads))


def made_sequence(plan: Plan) -> Block:
    shape = jax.ShapeDtypeStruct((plan.launch_rows, plan.length, plan.lanes), plan.dtype)
    return Block(shape, (1, plan.chunk, plan.block_lanes), lambda row, heads, chunk: (row, chunk, heads))


def by_group(plan: Plan, value: Any) -> Block:
    """(rows, length, groups * state)."""
    return Block(
        value, (1, plan.chunk, plan.state), lambda row, heads, chunk: (_row(plan, row), chunk, heads // plan.blocks)
    )


def by_pass(plan: Plan, value: Any, shared: bool = False) -> Block:
    """(rows, passes, heads of a pass, whole chunks)."""
    block = (1, plan.passes, plan.unroll, plan.chunk)
    return Block(value, block, lambda row, heads, chunk: (_row(plan, row) if shared else row, heads, 0, chunk))


def factored(plan: Plan, value: jax.Array) -> Block:
    """(launch rows, blocks of all groups, passes + 1, chunks) int32, see `tpu_layout.factored`."""
    block = (1, 1, plan.passes + 1, plan.chunks)
    return Block(value, block, lambda row, heads, chunk: (row, heads, 0, 0), pltpu.SMEM)


def by_position(plan: Plan, value: Any) -> Block | None:
    """(rows of one direction, 1, whole chunks)."""
    if value is None:
        return None
    return Block(value, (1, 1, plan.chunk), lambda row, heads, chunk: (jax.lax.rem(row, plan.rows), 0, chunk))


def by_lane(plan: Plan, value: Any) -> Block | None:
    """(directions, 1, lanes)."""
    if value is None:
        return None
    return Block(value, (1, 1, plan.block_lanes), lambda row, heads, chunk: (row // plan.rows, 0, heads))


def state(plan: Plan, value: Any) -> Block | None:
    """(launch rows, lanes, state)."""
    if value is None:
        return None
    return Block(value, (1, plan.block_lanes, plan.state), lambda row, heads, chunk: (row, heads, 0))


def made_state(plan: Plan) -> Block | None:
    return state(plan, jax.ShapeDtypeStruct((plan.launch_rows, plan.lanes, plan.state), jnp.float32))


def chunk_states(plan: Plan, value: Any) -> Block:
    """(launch rows, chunks, state, lanes)."""
    block = (1, 1, plan.state, plan.block_lanes)
    return Block(value, block, lambda row, heads, chunk: (row, chunk, 0, heads))


def _row(plan: Plan, row: Any) -> Any:
    return jax.lax.rem(row, plan.rows) if plan.shared else row
