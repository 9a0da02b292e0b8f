"""Which implementations the suites of the kernels run, and how.

Without a GPU its kernels run in Triton's interpreter, and without a TPU its kernels run in the TPU interpreter. On a
machine that has one, named in JAX_PLATFORMS, they run as they are, and their tests carry the marker:
JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/kernels. Most of that time is Triton's, which compiles on one core: -n 8 of
pytest-xdist, or a process for each file, takes more of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import jax
import pytest

_PLATFORMS = os.environ.get("JAX_PLATFORMS", "").split(",")
HAS_GPU, HAS_TPU = bool({"cuda", "gpu"} & {*_PLATFORMS}), "tpu" in _PLATFORMS
if HAS_GPU:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that several processes share its memory
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which no test before this one does

_ON_GPU = pytest.mark.gpu if HAS_GPU else ()
_NEXT_TO_REFERENCE = [
    pytest.param("xla", marks=_ON_GPU),  # it is what None takes where a kernel does not support the arguments
    pytest.param("gpu", marks=_ON_GPU),
    pytest.param("tpu", marks=pytest.mark.tpu if HAS_TPU else ()),
]


# an interpreted TPU kernel takes seconds to compile, each time: `make test` leaves these out, -m slow runs them
_SLOW_ON_A_TPU = (
    "random_shapes", "two_halves", "same_bits", "are_sequences", "are_softplus", "forms",
    # one direction, dtype or kind of mask is left of each, and of the cases those with the most kinds of arguments
    "do_not_leak[tpu-gaps", "do_not_leak[tpu-False", "extreme_decays[tpu-True", "bidirectional_in_bfloat16",
    "sum_of_both_directions[tpu-8-None", "test_pair_agrees_with_reference[tpu-bfloat16", "test_pair_with_optional",
    "one_position", "chunks", "-groups]", "-segments]", "window_of_2", "not_activated",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        interpreted = not HAS_TPU and "tpu" in (parameters.get("implementation"), parameters.get("any_implementation"))
        if interpreted and any(name in item.name for name in _SLOW_ON_A_TPU):
            item.add_marker(pytest.mark.slow)
        if interpreted and "under_vmap_remat_and_scan" in item.name:
            reason = "the TPU interpreter takes neither vmap nor remat; test_lowering compiles them"
            item.add_marker(pytest.mark.skip(reason=reason))
        if HAS_GPU and "gpu_kernels" in item.name and "compile" not in item.name:
            item.add_marker(pytest.mark.gpu)
    for item in items:  # those that are marked in their files are of sizes that no interpreter can do
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="no GPU: name it in JAX_PLATFORMS=cuda,cpu"))


# of the scope of a module, so that pytest runs all that one implementation does there in a row
@pytest.fixture(scope="module", params=_NEXT_TO_REFERENCE)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an implementation that is held against the reference."""
    with _runnable(request):
        yield request.param


@pytest.fixture(scope="module", params=["reference", *_NEXT_TO_REFERENCE])
def any_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an implementation, the reference among them, that does what the definition promises."""
    with _runnable(request):
        yield request.param


@contextlib.contextmanager
def _runnable(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skips if a package is missing, and enters the TPU interpreter.

    XLA's float32 matmuls follow a setting, which on a GPU means TF32 by default. Kernels do not, and get none.
    """
    name = request.param
    if name == "gpu" and importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton: install the `gpu` extra")
    if name == "gpu" and HAS_GPU and importlib.util.find_spec("jax_triton") is None:
        pytest.skip("no jax-triton: install the `gpu` extra")
    if name == "tpu" and not HAS_TPU:
        from dimba_kernels.tpu_call import interpreted

        with interpreted():
            yield
    elif name != "gpu" and HAS_GPU:
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield


if HAS_GPU or HAS_TPU:

    @pytest.fixture(scope="module", autouse=True)
    def quick_compilation() -> Iterator[None]:
        """In place of the fixture of all tests: what runs on an accelerator is compiled as its users compile it."""
        yield
        jax.clear_caches()
