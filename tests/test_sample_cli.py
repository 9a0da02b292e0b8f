"""The command: its outputs, where its settings come from, and its one-line errors."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dimba_jax import sample
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import from_config_dict, to_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.models.denoiser import Denoiser

CONFIG = from_config_dict(
    {
        "data": {"source_length": 6, "target_length": 5, "normalize": "none"},
        "model": {
            "embedding_dim": 8, "d_model": 16, "layers": 1, "head_dim": 8, "state_dim": 4, "chunk": 4, "expand": 1,
        },
        "process": {"timesteps": 10},
        "sampling": {"steps": 4, "batch_size": 2, "num_samples": 2},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An untrained model whose head puts out one letter everywhere, so that its texts are not empty."""
    network = Denoiser(CONFIG.model, vocab_size=259, source_length=6, target_length=5, rngs=nnx.Rngs(0))
    params = jax.tree.map(jnp.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    params["rounding"]["bias"] = params["rounding"]["bias"].at[3 + ord("k")].set(100.0)
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(
            1, {"params": params, "ema": params, "process": make_gaussian(CONFIG.process)},
            data_state=None, config=to_dict(CONFIG), tokenizer=ByteTokenizer().to_dict(),
        )  # fmt: skip
    return folder


def run(*options):
    return sample.main(["sample", *map(str, options)])


def test_prompt(workdir, capsys):
    assert run(f"--checkpoint={workdir}", "--prompt=ab") == 0
    assert capsys.readouterr().out.splitlines() == ["kkkkk"] * 2  # num_samples of the checkpoint's config
    assert run(f"--checkpoint={workdir}", "--prompt=ab", "--num_samples=1", "--show_trajectory") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].rstrip() for line in lines[:5]] == [f"step {k}/4" for k in range(5)]
    assert lines[4].endswith("kkkkk") and not lines[0].endswith("kkkkk") and lines[5:] == ["", "kkkkk"]


def test_file_to_file(workdir, tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"src": "a b", "id": 3}, {"src": "é", "trg": ["x"]}, {"src": "a much longer prompt"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    assert run(f"--checkpoint={workdir}", f"--input={source}", f"--output={output}", "--sampler=ddpm", "--steps=2") == 0
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert found == [row | {"samples": ["kkkkk"] * 2} for row in rows]
    shown = capsys.readouterr()
    assert shown.out == "" and "sampling" in shown.err
    assert [path.name for path in tmp_path.iterdir()] in (["in.jsonl", "out.jsonl"], ["out.jsonl", "in.jsonl"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt=a"], "--checkpoint=WORKDIR is missing"),
        (["--checkpoint=W"], "give either --prompt=TEXT or --input=FILE"),
        (["--checkpoint=W", "--prompt=a", "--input=b"], "give either --prompt=TEXT or --input=FILE"),
        (["--checkpoint=W", "--input=b"], "--input=FILE and --output=FILE go together"),
        (["--checkpoint=W", "--prompt="], "--prompt is empty"),
        (["--checkpoint=W", "--prompt=a", "--stepz=3"], "stepz"),
        (["--checkpoint=W", "--prompt=a", "--steps=many"], "steps"),
        (["--checkpoint=W", "--prompt=a", "more"], "unexpected argument 'more'"),
        (["--checkpoint=W", "--input=no.jsonl", "--output=o"], "there is no such file"),
        (["--checkpoint=nowhere", "--prompt=a"], "holds no checkpoint"),
        (["--checkpoint={workdir}", "--prompt=a", "--checkpoint_step=9"], "has no step 9"),
        (["--checkpoint={workdir}", "--prompt=a", "--steps=11"], "sampling.steps=11 exceeds process.timesteps=10"),
        (["--checkpoint={workdir}", "--prompt=a", "--sampler=euler"], "sampler='euler'"),
        (["--checkpoint={workdir}", "--prompt=a", "--guidance=2"], "condition_dropout"),
        (["--checkpoint={workdir}", "--prompt=a", "--early_exit=-1"], "early_exit=-1"),
        (["--checkpoint={workdir}", "--prompt=a", "--clamp_from=1.5"], "clamp_from=1.5"),
    ],
)
def test_user_errors_are_one_line(workdir, capsys, options, message):
    assert run(*(option.format(workdir=workdir) for option in options)) != 0
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""


@pytest.mark.parametrize("line", ["{", '{"src": 3}', '"a"', '{"text": "a"}', '{"src": " "}'])
def test_bad_input_lines_are_named(workdir, tmp_path, capsys, line):
    source = tmp_path / "in.jsonl"
    source.write_text('{"src": "fine"}\n' + line + "\n", encoding="utf-8")
    assert run(f"--checkpoint={workdir}", f"--input={source}", f"--output={tmp_path / 'o'}") != 0
    assert f"{source}:2: " in capsys.readouterr().err


def test_the_output_is_checked_before_sampling(workdir, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"src": "fine"}\n', encoding="utf-8")
    for output, message in [(tmp_path, "is a folder"), (tmp_path / "no" / "out.jsonl", "there is no folder")]:
        assert run("--checkpoint=nowhere", f"--input={source}", f"--output={output}") != 0
        assert message in capsys.readouterr().err


def test_a_cut_prompt_is_told(workdir, caplog, capsys):
    assert run(f"--checkpoint={workdir}", "--prompt=12345678") == 0
    assert "lost its last 3" in caplog.text


def test_help(capsys):
    assert run("--help") == 0
    assert "--show_trajectory" in capsys.readouterr().out
