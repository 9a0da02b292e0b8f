"""The multiplications inside Pallas kernels, which XLA cannot see: counted in what JAX traced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core

Sizes = tuple[int, ...]


class KernelFlops:
    """Of every kernel of a traced program, by its name and the sizes of its results. Work that depends on values, such
    as the slower form for decays that do not fit, counts as not done."""

    def __init__(self, traced: core.ClosedJaxpr):
        self._found: dict[tuple[str, tuple[Sizes, ...]], float] = {}
        for call in _calls(traced.jaxpr):
            sizes = tuple(_sizes(out) for out in call.outvars)
            self._found[_name(call), sizes] = _flops(call)

    def of(self, name: str, sizes: Sequence[Sizes]) -> float:
        """Of one call.

        Raises:
          KeyError: no such kernel was traced.
        """
        return self._found[name, tuple(sizes)]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._found}


def _calls(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in _inner(equation):
                yield from _calls(inner)


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _name(call: core.JaxprEqn) -> str:
    return call.params["name"]


def _sizes(value: Any) -> Sizes:
    return tuple(value.aval.shape)


def _flops(call: core.JaxprEqn) -> float:
    return math.prod(call.params["grid_mapping"].grid) * _matmuls(call.params["jaxpr"])


def _matmuls(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = _sizes(equation.invars[0])
            inner = math.prod(left[place] for place in contracted)
            total += 2.0 * math.prod(_sizes(equation.outvars[0])) * inner
        elif name == "cond":
            total += min(_matmuls(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times: Any = equation.params.get("length", 1) if name == "scan" else 1
            total += times * sum(_matmuls(inner) for inner in _inner(equation))
    return total
