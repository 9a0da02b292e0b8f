"""Programs compiled for TPUs that are not there, and what is read in them."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from aot_process import LAYERS, RECIPE, ROOT, SMALL, command
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dimba_jax import aot
from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.scale import chips
from dimba_jax.scale.collectives import Collective, collectives, stacks_gathered
from dimba_jax.scale.hlo import Module, arrays_in
from dimba_jax.scale.kernels import KernelFlops
from dimba_jax.scale.programs import TooLarge, _refused, compile_part
from dimba_jax.scale.report import describe, lines
from dimba_jax.scale.work import _meetings, work_of

OPTIMISED = True  # what is read is what the compiler makes of a program

WITH_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: install the `tpu` extra"
)


@pytest.fixture(scope="module")
def on_a_tpu(tmp_path_factory):
    """What was printed, and the rows of the training and of the sampling step, on 16 chips.

    Over a torus of 4 x 4 an axis of 8 is a part of two of its axes.
    """
    rows = tmp_path_factory.mktemp("aot") / "rows.jsonl"
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=8"]
    done = command(RECIPE, "--topology=v6e:4x4", *mesh, *SMALL, f"--output={rows}")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, *map(json.loads, rows.read_text().splitlines())


@WITH_LIBTPU
def test_the_kernels_are_in_the_program_and_run_in_every_layer(on_a_tpu):
    _, train, sample = on_a_tpu
    for name in ("ssd_both", "ssd_backward", "causal_conv1d_forward", "causal_conv1d_backward"):
        assert train["kernels"][name] >= LAYERS
        assert train["kernels"][name] % LAYERS == 0
    assert {"ssd_both", "causal_conv1d_forward"} <= set(sample["kernels"])
    assert "ssd_backward" not in sample["kernels"]
    assert train["kernel_flops"] > 2 * sample["kernel_flops"] > 0


@WITH_LIBTPU
def test_memory_adds_up(on_a_tpu):
    printed, train, sample = on_a_tpu
    for row in (train, sample):
        assert row["fits"]
        assert 0.9 < row["free"] < 1
        assert row["hbm_needed"] == sum(row["memory"].values())
        kinds = sum(row["kinds"].values())
        assert kinds <= row["memory"]["arguments"] < 1.5 * kinds + 2**20  # tiles of memory are not full
    assert train["kinds"]["moments"] == pytest.approx(2 * train["kinds"]["parameters"], rel=1e-3)
    assert train["kinds"]["average"] == train["kinds"]["parameters"]
    assert "fits, 100% free of 31.25 GiB" in printed


@WITH_LIBTPU
def test_loops_count_as_often_as_they_run(on_a_tpu):
    _, train, sample = on_a_tpu
    for row in (train, sample):
        assert row["matmul_flops"] == pytest.approx(row["model_flops"], rel=0.05)
        assert row["counted_once"]["flops"] < 0.8 * row["matmul_flops"]
        assert row["counted_once"]["flops"] == pytest.approx(row["xla_once"]["flops"], rel=0.3)


@WITH_LIBTPU
def test_parameters_are_gathered_layer_by_layer(on_a_tpu):
    printed, train, _ = on_a_tpu
    assert train["stacks_gathered"] == []
    assert "parameters of all layers gathered at once: none" in printed
    gathers = [one for one in train["collectives"] if one["in_layers"] and "gather" in one["kind"]]
    assert sum(one["runs"] for one in gathers) >= 2 * LAYERS
    assert train["sent"] == pytest.approx(sum(one["sent"] for one in train["collectives"]))
    assert 0 < train["utilisation_apart"] < train["utilisation"] < 1


@WITH_LIBTPU
def test_a_shape_that_no_slice_has_is_refused():
    done = command(RECIPE, "--topology=v5e:3x5")
    assert done.returncode == 2
    assert "--topology=v5e:3x5: no v5e slice has this shape" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "gpu:8", "h200", "h200:9", "h200:2x4", "cpu:many", "cpu:99"])
def test_a_topology_that_is_unknown_is_refused(topology):
    with pytest.raises(ConfigError, match=f"--topology={topology}"):
        chips.target_of(topology)


def test_without_libtpu_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs libtpu, .* install the `tpu` extra"):
        chips.target_of("v5e:2x2")


def test_wrong_options_are_answered_on_one_line(capsys):
    assert aot.main(["aot", RECIPE]) == 2
    assert "--topology is missing" in capsys.readouterr().err
    assert aot.main(["aot", RECIPE, "--topology=cpu:8", "--parts=evaluate"]) == 2
    assert "--parts=evaluate is unknown" in capsys.readouterr().err
    assert aot.main(["aot", RECIPE, "--topology=cpu:8", "--config.mesh.fsdp=3"]) == 2
    assert "config.mesh (data=-1, fsdp=3" in capsys.readouterr().err


def test_eight_devices_of_a_host(capsys):
    assert aot.main(["aot", RECIPE, "--topology=cpu:8", "--config.mesh.fsdp=8", *SMALL, "--parts=sample"]) == 0
    printed = capsys.readouterr().out
    assert "one step of denoising of 16 rows of 128, cpu:8, fsdp=8" in printed
    assert "kernels      none" in printed
    assert "all-gather" in printed
    assert "no time is predicted" in printed


def test_activations_follow_the_rows_not_the_parameters(tmp_path):
    """Left to itself XLA splits a Transformer's activations as fsdp splits its parameters: twice the FLOPs, and sums
    of whole logits over the devices."""
    rows = tmp_path / "rows.jsonl"
    recipe = f"--config={ROOT / 'configs/diffumamba.py'}:tiny-tran"
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=8"]
    assert aot.main(["aot", recipe, "--topology=cpu:8", "--parts=train", *mesh, *SMALL, f"--output={rows}"]) == 0
    row = json.loads(rows.read_text())
    assert row["matmul_flops"] < 1.3 * row["model_flops"]
    assert row["sent"] < 4 * 8 * row["kinds"]["parameters"]
    assert row["commit"] == aot.program()


@pytest.mark.parametrize("code", ["", "E1000: CompileTimeHbmOom: "])  # libtpu 0.0.42 and 0.0.52
def test_what_the_compiler_refuses_does_not_fit(code):
    message = (
        f"RESOURCE_EXHAUSTED: {code}Ran out of memory on HBM, the total memory required for HLO temporaries (36.43G) "
        "exceeds available HBM (15.75G)."
    )
    refused = _refused("train", _mesh(8), {}, 512, message)
    assert isinstance(refused, TooLarge)
    assert (refused.needed, refused.available) == (36.43 * 2**30, 15.75 * 2**30)
    row = describe(refused, from_config_dict({"name": "large"}), chips.target_of("cpu:8"))
    assert not row["fits"]
    assert lines(row)[-1] == "  does not fit: the compiler needs 36.43 GiB of temporaries alone, of 15.75 GiB"


def _mesh(size: int) -> jax.sharding.Mesh:
    return jax.make_mesh((1, size, 1, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)


def _module(function, *arguments, **options) -> tuple[Module, KernelFlops]:
    traced = jax.jit(function, **options).trace(*arguments)
    return Module(traced.lower().compile().as_text()), KernelFlops(traced.jaxpr)


def test_flops_and_bytes_of_a_known_program():
    layers, size = 5, 64
    weights = jax.ShapeDtypeStruct((layers, size, size), jnp.float32)
    x = jax.ShapeDtypeStruct((32, size), jnp.float32)

    def run(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    work = work_of(*_module(run, weights, x))
    assert work.matmul_flops == layers * 2 * 32 * size * size
    assert work.flops_once == 2 * 32 * size * size
    # every layer reads its own weights and not all of them
    least = 4 * (layers * size * size + 2 * layers * 32 * size)
    assert least <= work.bytes < 4 * least


def test_collectives_of_a_known_program():
    mesh = _mesh(8)
    layers, size, rows = 3, 64, 16

    def run(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (layers, size, size), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((rows, size), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    module, _ = _module(run, weights, x, out_shardings=NamedSharding(mesh, PartitionSpec("fsdp")))
    (gather,) = collectives(module)
    assert (gather.kind, gather.ways, gather.times, gather.loops) == ("all-gather", 8, layers, (layers,))
    assert gather.size == 4 * size * size
    assert gather.sent == layers * gather.size * 7 / 8
    assert stacks_gathered([gather], layers, [layers * size * size]) == []


def test_a_gather_of_all_layers_is_found():
    def gather(shape, loops=()):
        return Collective("all-gather", 0.0, (shape,), 4, 1, loops, "")

    stacks = [6 * 8 * 16]
    assert stacks_gathered([gather((6, 2, 16))], 6, stacks)
    assert stacks_gathered([gather((12, 16))], 6, stacks)  # layers and rows are one axis
    assert stacks_gathered([gather((6, 2, 17))], 6, stacks)  # with padding
    assert not stacks_gathered([gather((6, 3, 16))], 6, stacks)
    assert not stacks_gathered([gather((2, 16), (6,))], 6, stacks)
    assert not stacks_gathered([gather((100, 2, 8))], 6, stacks)  # the head


@pytest.mark.parametrize(
    ("groups", "ways"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,128]<=[256]", 128),
        ("[2,4]<=[2,2,2]T(1,0,2)", 4),
        ("mesh['a'=16,'b'=1,'c'=16] {'a'}", 16),
        ("mesh['a'=128,'b'=2], device_ids=([2,128]T(1,0)) {'a','b'}", 256),
        ("mesh['a'=128,'b'=2] {'a':(1)4}", 4),
        ("{}", 256),
    ],
)
def test_groups_of_devices_are_read_in_every_form(groups, ways):
    text = (
        "HloModule m, num_partitions=256\n\n"
        "%add (x: f32[], y: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n  %y = f32[] parameter(1)\n"
        "  ROOT %sum = f32[] add(%x, %y)\n}\n\n"
        "ENTRY %main (p: f32[10,4]) -> f32[10,4] {\n  %p = f32[10,4]{1,0:T(8,128)} parameter(0)\n"
        f"  ROOT %all-reduce = f32[10,4]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={groups}, "
        'to_apply=%add, metadata={op_name="jit(f)/psum"}\n}\n'
    )
    (found,) = collectives(Module(text))
    assert (found.ways, found.size, found.origin) == (ways, 160, "jit(f)/psum")
    assert found.sent == 2 * 160 * (ways - 1) / ways


def test_arrays_on_the_chip_are_no_memory_traffic():
    arrays = arrays_in("(bf16[2,128]{1,0:T(2,128)(2,1)S(1)}, /*index=5*/f32[3]{0}, pred[], s4[8]{0})")
    assert [array.on_chip for array in arrays] == [True, False, False, False]
    assert [array.bytes for array in arrays] == [512, 12, 1, 4]


def test_padding_of_a_window_is_no_work():
    assert _meetings(8, 3, 8, {"pad": (1, 1)}) == 3 * 8 - 2
    # a batch of 5 matmuls as one convolution: each output meets its own kernel alone
    assert _meetings(5, 5, 5, {"stride": (4,), "lhs_dilate": (5,)}) == 5


def test_a_process_on_embeddings_has_no_compiled_sampling_step():
    config = from_config_dict({"process": {"kind": "gaussian"}})
    with pytest.raises(ConfigError, match="process.kind='gaussian'"):
        compile_part("sample", config, chips.target_of("cpu:8"))
