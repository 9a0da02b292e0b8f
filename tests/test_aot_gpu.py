"""Programs compiled for GPUs that are not there, and what is read in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import pytest
from aot_process import RECIPE, SMALL, command
from dimba_kernels import target
from dimba_kernels.dispatch import cuda_plugin, obstacle

from dimba_jax import aot
from dimba_jax.config import ConfigError
from dimba_jax.scale import chips, programs
from dimba_jax.scale.hlo import Module
from dimba_jax.scale.kernels import KernelFlops
from dimba_jax.scale.work import work_of

OPTIMISED = True  # what is read is what the compiler makes of a program

with target("gpu"):
    MISSING = cuda_plugin() is None or obstacle("gpu") is not None
WITH_CUDA = pytest.mark.skipif(MISSING, reason="no CUDA plugin of JAX, or no Triton: install the `gpu` extra")


def compiled_for_gpus(rows: Path, recipe: str, *arguments: str) -> tuple[str, list[dict]]:
    mixed = ["--config.model.dtype=bfloat16", "--config.model.remat=kernels"]
    done = command(recipe, *SMALL, *mixed, *arguments, f"--output={rows}")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, [json.loads(row) for row in rows.read_text().splitlines()]


@WITH_CUDA
def test_on_a_gpu_no_matmul_runs_twice(tmp_path):
    """Of layers one by one: those of a scan whose results it keeps do, as XLA fuses (experiments/throughput)."""
    arguments = ["--topology=h200:1", "--parts=train", "--config.model.scan_layers=False"]
    _, [train] = compiled_for_gpus(tmp_path / "rows.jsonl", RECIPE, *arguments)
    assert train["matmul_flops"] == pytest.approx(train["model_flops"], rel=0.05)


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory):
    """What was printed, and the rows of the training and of the sampling step of a hybrid, on two GPUs of a host."""
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=2"]
    rows = tmp_path_factory.mktemp("aot") / "rows.jsonl"
    layers = ["--config.model.pattern=('attention', 'mamba2')", "--config.model.layers=6"]
    printed, found = compiled_for_gpus(rows, RECIPE, "--topology=h200:2", *mesh, *layers)
    return printed, *found


@WITH_CUDA
def test_on_gpus_kernels_library_calls_and_memory_are_those_that_would_run(on_gpus):
    printed, train, sample = on_gpus
    assert set(train["kernels"]) == {"triton", "cudnn_attention", "cudnn_attention_backward"}
    assert set(sample["kernels"]) == {"triton", "cudnn_attention"}
    assert train["kernel_flops"] == pytest.approx(3.5 * sample["kernel_flops"] * train["rows"] / sample["rows"])
    for row in (train, sample):
        assert row["fits"]
        assert row["hbm_needed"] == sum(row["memory"].values())
        assert "scheduled_seconds" not in row
        assert 0 < row["utilisation_apart"] < row["utilisation"] < 1
    assert train["stacks_gathered"] == []
    assert {"all-gather", "reduce-scatter"} <= {one["kind"] for one in train["collectives"] if one["in_layers"]}
    assert "by the compiler's estimate" not in printed


def test_without_the_cuda_plugin_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(chips, "cuda_plugin", lambda: None)
    with pytest.raises(ConfigError, match="h200:8 needs JAX's CUDA plugin .* install the `gpu` extra"):
        chips.target_of("h200:8")


@pytest.fixture
def plugin_there(monkeypatch):
    monkeypatch.setattr(chips, "cuda_plugin", lambda: "xla_cuda13")


def test_a_plugin_that_refuses_the_description_is_answered(plugin_there, monkeypatch):
    def refuse(kind, count):
        raise RuntimeError("no\n  such field")

    monkeypatch.setattr(chips.gpu, "described", refuse)
    with pytest.raises(ConfigError, match=r"h200:8: JAX's CUDA plugin refuses its description \(no such field\)"):
        chips.target_of("h200:8")


@pytest.fixture
def flags(monkeypatch):
    """Sets XLA's flags, which JAX has read by then."""
    jax.devices()
    return lambda given: monkeypatch.setenv("XLA_FLAGS", given)


def test_a_gpu_s_program_without_its_kernels_is_refused(flags, monkeypatch, capsys):
    """It would be another one."""
    flags("")
    monkeypatch.setattr(programs, "obstacle", lambda name: "triton is missing")
    where = chips.Target("h200:1", "gpu", jax.devices()[:1], chips.GPUS["h200"])
    monkeypatch.setattr(chips, "target_of", lambda topology: where)
    assert aot.main(["aot", RECIPE, "--topology=h200:1"]) == 2
    assert "h200:1: triton is missing, or set --config.model.implementation=xla" in capsys.readouterr().err


def test_the_compiler_of_a_gpu_is_told_that_nothing_can_be_timed(flags, monkeypatch):
    """Behind what the user says; a file of flags cannot be added to."""
    flags("--xla_dump_to='a  b'")
    monkeypatch.setattr(chips, "cuda_plugin", lambda: None)
    assert aot.main(["aot", RECIPE, "--topology=h200:1"]) == 2
    assert os.environ["XLA_FLAGS"] == " ".join(["--xla_dump_to='a  b'", *chips.gpu.FLAGS])
    flags("flags.txt")
    with pytest.raises(ConfigError, match="XLA_FLAGS=flags.txt names a file"):
        aot._add_xla_flags("--xla_gpu_autotune_level=0")


GPU_TEXT = """
%asynchronous (from: bf16[24,64,256], at: s32[]) -> bf16[1,64,256] {
  %from = bf16[24,64,256]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64,256]{2,1,0} dynamic-slice(%from, %at, %zero, %zero), dynamic_slice_sizes={1,64,256}
}

ENTRY %main (x: bf16[128,64], stack: bf16[24,64,256], i: s32[], q: bf16[2,64,4,16]) -> bf16[128,256] {
  %x = bf16[128,64]{1,0} parameter(0)
  %stack = bf16[24,64,256]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %q = bf16[2,64,4,16]{3,2,1,0} parameter(3)
  %k = bf16[2,96,4,16]{3,2,1,0} parameter(4)
  %start = ((bf16[24,64,256]{2,1,0}, s32[]), bf16[1,64,256]{2,1,0}, u32[]) fusion-start(%stack, %i), calls=%asynchronous
  %done = bf16[1,64,256]{2,1,0} fusion-done(%start)
  %kernel = bf16[64,256]{1,0} bitcast(%done)
  %called = (bf16[128,256]{1,0}, s8[33554432]{0}) custom-call(%x, %kernel), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %seen = (bf16[2,4,64,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %kept = (bf16[2,4,64,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %scanned = bf16[128,64]{1,0} custom-call(%x), custom_call_target="triton_kernel_call"
  %gather = ((bf16[128,64]{1,0}, bf16[2,64,4,16]{3,2,1,0}), (bf16[256,64]{1,0}, bf16[4,64,4,16]{3,2,1,0})) \
all-gather-start(%x, %q), replica_groups={{0,1}}, dimensions={0}
  %gathered = (bf16[256,64]{1,0}, bf16[4,64,4,16]{3,2,1,0}) all-gather-done(%gather)
  %scatter = ((bf16[128,64]{1,0}), bf16[64,64]{1,0}) reduce-scatter-start(%x), replica_groups={{0,1}}, dimensions={0}
  %part = bf16[64,64]{1,0} reduce-scatter-done(%scatter)
  %sum = bf16[128,64]{1,0} all-reduce-start(%x), replica_groups={{0,1}}
  %summed = bf16[128,64]{1,0} all-reduce-done(%sum)
  ROOT %result = bf16[128,256]{1,0} get-tuple-element(%called), index=0
}
"""


def test_what_a_gpu_s_program_does():
    """Matmuls are library calls, whose room to work in is not traffic; of a stack that is cut in passing a slice is
    read and written; the products of attention are two forward and five backward; of collectives, several arrays at
    once, what goes in and what comes out counts where they start."""
    work = work_of(Module(GPU_TEXT), KernelFlops(jax.make_jaxpr(lambda: 0)()))
    kernel, x, result = 2 * 64 * 256, 2 * 128 * 64, 2 * 128 * 256
    q, k = (2 * 2 * length * 4 * 16 for length in (64, 96))
    assert work.matmul_flops == 2 * 128 * 64 * 256
    assert work.kernels == {"cudnn_attention": 1, "cudnn_attention_backward": 1, "triton": 1}
    assert work.kernel_flops == (2 + 5) * 2 * (2 * 4) * 64 * 96 * 16
    assert work.kernel_bytes == 2 * (q + 2 * k + q) + 2 * x
    calls = (2 * kernel + 4) + (x + kernel + result)  # 4: which slice
    assert work.bytes == work.kernel_bytes + calls + 3 * (x + q) + 1.5 * x + 2 * x
