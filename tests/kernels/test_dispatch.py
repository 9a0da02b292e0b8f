"""Which implementation runs: by name, or the best there is for the platform and the arguments."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import causal_conv1d, dispatch, ssd, target, tpu_call, triton_call
from dimba_kernels.selective_scan import arg_specs as s6
from dimba_kernels.ssd.arg_specs import SHAPES, arguments

TINY = arguments(SHAPES["tiny"])
OTHERS = dict(h0=None, D=None, mask=None, segments=None, reverse=False, chunk=None)
PACKAGE = "dimba_kernels.ssd"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton: install the `gpu` extra")
on_a_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a machine without an accelerator does")


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    """As in a process that interprets nothing."""
    monkeypatch.setattr(triton_call, "interpreting", lambda: False)


def chosen(implementation=None, **changes):
    return dispatch.choose("ssd", PACKAGE, implementation, OTHERS | TINY | changes).__module__


@on_a_cpu
def test_none_is_xla_on_a_cpu():
    assert chosen() == f"{PACKAGE}.xla"
    assert dispatch.target_platform() == "cpu"


@needs_triton
def test_none_is_the_kernel_of_the_target():
    with target("gpu"):
        assert chosen() == f"{PACKAGE}.gpu"
    with target("tpu"):
        assert chosen() == f"{PACKAGE}.tpu"
    with target("cpu"):
        assert chosen() == f"{PACKAGE}.xla"


@needs_triton
def test_none_supports_the_arguments():
    with target("gpu"), jax.enable_x64(True):
        assert chosen(x=jnp.asarray(np.ones((2, 13, 4, 3)))) == f"{PACKAGE}.xla"


@needs_triton
def test_float16_has_no_kernel_of_selective_scan():
    with target("gpu"):
        why = importlib.import_module("dimba_kernels.selective_scan.gpu").unsupported(
            **{name: value.astype(jnp.float16) for name, value in s6.arguments(s6.SHAPES["tiny"]).items()}
        )
    assert why == "u is float16, not one of float32, bfloat16"


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_none_never_chooses_an_interpreter(name, monkeypatch):
    monkeypatch.setattr(triton_call, "interpreting", lambda: True)
    monkeypatch.setattr(tpu_call, "interpreting", lambda: True)
    with target(name):
        assert chosen() == f"{PACKAGE}.xla"


@on_a_cpu
@pytest.mark.parametrize(
    ("name", "how"), [("gpu", "set TRITON_INTERPRET=1"), ("tpu", r"inside `dimba_kernels.tpu_call.interpreted\(\)`")]
)
def test_what_cannot_run_here_says_why(name, how):
    with pytest.raises(
        NotImplementedError, match=f"ssd cannot run as .*the platform is 'cpu'.*{how}.*implementation=None"
    ):
        ssd(**TINY, implementation=name)


@needs_triton
@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_arguments_that_a_kernel_does_not_take_are_named(name):
    with target(name), jax.enable_x64(True), pytest.raises(NotImplementedError, match="float64"):
        chosen(name, x=jnp.asarray(np.ones((2, 13, 4, 3))))


def test_a_missing_package_is_named_and_warned_of(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda package, name: "No module named 'jax_triton'")
    with target("gpu"):
        with pytest.raises(NotImplementedError, match="No module named 'jax_triton'"):
            chosen("gpu")
        with pytest.warns(RuntimeWarning, match="without its gpu kernels: No module named 'jax_triton'"):
            assert chosen() == f"{PACKAGE}.xla"


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown; pass one of 'reference', 'xla', 'gpu', 'tpu', or None"):
        ssd(**TINY, implementation="cuda")
    with pytest.raises(ValueError, match="platform='cuda' is unknown"), target("cuda"):
        pass


def test_the_target_is_part_of_what_jit_remembers():
    seen = []

    @jax.jit
    def function(x):
        seen.append(dispatch.target_platform())
        return causal_conv1d(x, jnp.ones((3, 4)), implementation="xla")[0]

    x = jnp.ones((1, 5, 3))
    with target("tpu"):
        function.trace(x)
    with target("gpu"):
        function.trace(x)
    function(x), function(x)
    assert seen == ["tpu", "gpu", jax.default_backend()]


def test_the_default_device_counts():
    with jax.default_device(jax.devices("cpu")[0]):
        assert dispatch.target_platform() == "cpu"
