"""The figures of a compiled program, for people and as a row of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax

from dimba_jax.config import RunConfig
from dimba_jax.parallel import AXES
from dimba_jax.scale.chips import GIB, Chip, Target
from dimba_jax.scale.collectives import Collective, collectives, stacks_gathered
from dimba_jax.scale.hlo import Module
from dimba_jax.scale.kernels import KernelFlops
from dimba_jax.scale.programs import Program, TooLarge
from dimba_jax.scale.work import work_of, xla_counts

Row = dict[str, Any]


def describe(program: Program | TooLarge, config: RunConfig, target: Target) -> Row:
    """All figures, of one device unless they say otherwise; bytes, FLOPs and seconds."""
    mesh = {axis: program.mesh.shape[axis] for axis in AXES}
    row: Row = {
        "name": config.name,
        "part": program.part,
        "topology": target.topology,
        "mesh": mesh,
        "rows": program.rows,
        "length": config.data.source_length + config.data.target_length,
        "remat": config.model.remat,
        "kinds": {kind: _bytes_of(tree) for kind, tree in program.arguments.items()},
    }
    if isinstance(program, TooLarge):
        return row | {
            "fits": False,
            "hbm_needed": program.needed,
            "hbm": program.available,
            "refusal": program.message,
        }
    row |= _memory(program, target.chip)
    module = Module(program.compiled.as_text() or "")
    kernel_flops = KernelFlops(program.traced.jaxpr)
    work = work_of(module, kernel_flops)
    found = collectives(module)
    repeats, stacks = _stacks(program, config)
    row |= {
        "compile_seconds": round(program.seconds, 1),
        "matmul_flops": work.matmul_flops,
        "kernel_flops": work.kernel_flops,
        "bytes": work.bytes,
        "kernel_bytes": work.kernel_bytes,
        "kernels": work.kernels,
        "xla_once": xla_counts(program.compiled),
        "counted_once": {"flops": work.flops_once, "bytes": work.bytes_once},
        "model_flops": model_flops(program, config) / program.mesh.size,
        "collectives": _summed(found, repeats),
        "sent": sum(collective.sent for collective in found),
        "stacks_gathered": None
        if stacks is None
        else [_plain(gather) for gather in stacks_gathered(found, repeats, stacks)],
    }
    return row | (_time(row, work.estimated_cycles, target.chip) if target.chip else {})


def model_flops(program: Program, config: RunConfig) -> float:
    """2 or 6 FLOPs a token and weight of a matmul, of the whole batch: what the model asks for.

    The table, from which rows are read, is no matmul unless the head is tied to it, and what the time passes through is
    one a row. The scans and attention's scores are not counted either.
    """
    weights = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.arguments["parameters"]):
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if "modulation" in names or "time" in names:
            continue
        if names[-1] == "kernel" or (names[-1] == "table" and config.model.head != "untied"):
            weights += leaf.size
    tokens = program.rows * (config.data.source_length + config.data.target_length)
    return (6 if program.part == "train" else 2) * weights * tokens


def _bytes_of(tree: Any) -> float:
    """On one device."""

    def size(leaf: jax.ShapeDtypeStruct) -> float:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * getattr(leaf.dtype, "itemsize", 4)

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def _memory(program: Program, chip: Chip | None) -> Row:
    found = program.compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    used = sum(parts.values())
    row: Row = {"memory": parts, "hbm_needed": used}
    if chip is None:
        return row
    return row | {"hbm": chip.hbm, "fits": used <= chip.hbm, "free": 1 - used / chip.hbm}


def _stacks(program: Program, config: RunConfig) -> tuple[int, list[int] | None]:
    """Trips of the scan over layers, and the elements of stacked parameters that lie in parts; None without a scan."""
    repeats = config.model.layers // len(config.model.pattern)
    if not config.model.scan_layers or repeats < 2:
        return repeats, None
    stacks = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.arguments["parameters"])
        if "groups" in jax.tree_util.keystr(path) and not leaf.sharding.is_fully_replicated
    ]
    return repeats, stacks


def _plain(collective: Collective) -> Row:
    return {"kind": collective.kind, "size": collective.size, "ways": collective.ways, "origin": collective.origin}


def _summed(found: Iterable[Collective], repeats: int) -> list[Row]:
    """One line for each kind, group and place. size: of the largest; sent: of all."""
    sums: dict[tuple[str, int, bool], Row] = {}
    for one in found:
        key = one.kind, one.ways, repeats in one.loops
        empty: Row = dict(kind=key[0], ways=key[1], in_layers=key[2], count=0, runs=0, size=0.0, sent=0.0)
        row = sums.setdefault(key, empty)
        row["count"] += 1
        row["runs"] += one.times
        row["size"] = max(row["size"], one.size)
        row["sent"] += one.sent
    return sorted(sums.values(), key=lambda row: -row["sent"])


def _time(row: Row, cycles: int, chip: Chip) -> Row:
    """Seconds of the roofline: the slowest of the three, if they overlap perfectly, and their sum, if not at all."""
    parts = {
        "compute": (row["matmul_flops"] + row["kernel_flops"]) / chip.flops,
        "memory": row["bytes"] / chip.bandwidth,
        "links": row["sent"] / chip.links,
    }
    ideal = row["model_flops"] / chip.flops
    best = max(parts.values())
    found = {
        "seconds": parts,
        "step_seconds": best,
        "step_seconds_apart": sum(parts.values()),
        "bound": max(parts, key=lambda name: parts[name]),
        "utilisation": ideal / best,
        "utilisation_apart": ideal / sum(parts.values()),
    }
    if chip.clock is None:
        return found
    # the compiler's figure knows the vector units, but neither kernels, which are at best at their bytes, nor waiting
    scheduled = cycles / chip.clock + row["kernel_bytes"] / chip.bandwidth
    return found | {
        "scheduled_seconds": scheduled,
        "utilisation_scheduled": ideal / max(scheduled, parts["links"]),
    }


def lines(row: Row) -> list[str]:
    """The figures to read."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1) or "one device"
    what = {"train": "training step", "sample": "one step of denoising"}[row["part"]]
    head = f"{row['name']}: {what} of {row['rows']} rows of {row['length']:,}, {row['topology']}, {mesh}"
    kinds = ", ".join(f"{kind} {_size(size)}" for kind, size in row["kinds"].items())
    out = [f"{head}, remat={row['remat']}", f"  arguments    {kinds}"]
    if not row.get("fits", True) and "refusal" in row:
        asked = f"{_size(row['hbm_needed'])} of temporaries alone, of {_size(row['hbm'])}"
        return [*out, f"  does not fit: the compiler needs {asked if row['hbm_needed'] else row['refusal']}"]
    memory = ", ".join(f"{kind} {_size(size)}" for kind, size in row["memory"].items())
    out.append(f"  memory       {_size(row['hbm_needed'])}: {memory}")
    if "hbm" in row:
        verdict = f"fits, {row['free']:.0%} free" if row["fits"] else "does not fit"
        out.append(f"               {verdict} of {_size(row['hbm'])}")
    total = row["matmul_flops"] + row["kernel_flops"]
    out += [
        f"  FLOPs        {total:.3g}: matmuls {row['matmul_flops']:.3g}, kernels {row['kernel_flops']:.3g}; "
        f"the model asks for {row['model_flops']:.3g}",
        f"  HBM traffic  {_size(row['bytes'])}, of kernels {_size(row['kernel_bytes'])}",
        f"  kernels      {', '.join(f'{name} x{count}' for name, count in row['kernels'].items()) or 'none'}",
        f"  sent         {_size(row['sent'])}",
    ]
    for one in row["collectives"]:
        if one["sent"] >= 1e-3 * row["sent"]:
            place = "each layer" if one["in_layers"] else "outside"
            out.append(
                f"    {one['kind']:<18} over {one['ways']:>3}, {place:<10} {one['runs']:>5} runs, the largest of "
                f"{_size(one['size'])}, in all {_size(one['sent'])}"
            )
    wrong = row["stacks_gathered"]
    if wrong is None:
        out.append("  layers are not scanned: each is gathered where it is used")
    else:
        out.append(f"  parameters of all layers gathered at once: {[_size(one['size']) for one in wrong] or 'none'}")
    if "seconds" not in row:
        return [*out, "  no time is predicted for these devices"]
    parts = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in row["seconds"].items())
    out.append(
        f"  roofline     {1e3 * row['step_seconds']:.1f} ms ({row['bound']}) if all overlap, "
        f"{1e3 * row['step_seconds_apart']:.1f} if nothing does: {parts}"
    )
    used = f"{row['utilisation']:.0%} of peak predicted at best, {row['utilisation_apart']:.0%} without overlap"
    if "scheduled_seconds" in row:
        out.append(
            f"  compiler     {1e3 * row['scheduled_seconds']:.1f} ms by its own estimate, kernels at their bytes"
        )
        used += f", {row['utilisation_scheduled']:.0%} by the compiler's estimate"
    return [*out, f"  utilisation  {used}"]


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
