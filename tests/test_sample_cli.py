"""The command: its outputs, where its settings come from, and its one-line errors."""

import json
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dimba_jax import sample, sampling_flags
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import SamplingConfig, from_config_dict, to_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.models.build import make_denoiser
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
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["kkkkk"] * 2  # num_samples of the checkpoint's config
    assert shown.err.splitlines()[-1] == "network calls: 4 for each sample"
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
    assert found == [row | {"samples": ["kkkkk"] * 2, "network_calls": 2} for row in rows]
    shown = capsys.readouterr()
    assert shown.out == "" and "sampling" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.run.json"]
    made = json.loads((tmp_path / "out.run.json").read_text(encoding="utf-8"))
    assert (made["step"], made["seed"], made["sampling"]["steps"]) == (1, 0, 2)
    assert from_config_dict(made["settings"]) == CONFIG and made["environment"]["command"][-1] == "--steps=2"
    output = tmp_path / "unrolled.jsonl"
    assert run(f"--checkpoint={workdir}", f"--input={source}", f"--output={output}", "--noscan_layers") == 0
    made = json.loads((tmp_path / "unrolled.run.json").read_text(encoding="utf-8"))
    assert from_config_dict(made["settings"]) == replace(CONFIG, model=replace(CONFIG.model, scan_layers=False))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt=a"], "--checkpoint=WORKDIR is missing"),
        (["--checkpoint=W"], "give either --prompt=TEXT or --input=FILE"),
        (["--checkpoint=W", "--prompt=a", "--input=b"], "give either --prompt=TEXT or --input=FILE"),
        (["--checkpoint=W", "--input=b"], "--input=FILE and --output=FILE go together"),
        (["--checkpoint={workdir}", "--prompt="], "--prompt is empty"),
        (["--checkpoint={workdir}", "--prompt=a", "--length=9"], "--length=9: is for models of running text"),
        (["--checkpoint={workdir}", "--prompt=a", "--top_k=9"], "--top_k has no meaning with sampler 'ddim'"),
        (["--checkpoint={workdir}", "--prompt=a", "--sampler=ddpm", "--eta=1"], "--eta has no meaning with sampler"),
        (["--checkpoint={workdir}", "--prompt=a", "--remask_window=a,b"], "--remask_window=a,b: expected numbers"),
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


TEXT_CONFIG = from_config_dict(
    {
        "data": {"source": "text", "source_length": 0, "target_length": 6, "normalize": "none"},
        "tokenizer": {"kind": "bytes"},
        "model": {
            "d_model": 16, "layers": 1, "head_dim": 8, "state_dim": 4, "chunk": 4, "expand": 1, "head": "untied",
            "self_conditioning": False,
        },
        "process": {"kind": "masked", "schedule": "log_linear", "timesteps": 10, "time_conditioning": False},
        "sampling": {"sampler": "confidence", "steps": 4, "batch_size": 2},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def text_workdir(tmp_path_factory):
    """A masked model of running text, as far as it goes: the letter k."""
    network = make_denoiser(TEXT_CONFIG, 259, nnx.Rngs(0))
    params = jax.tree.map(jnp.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    params["head"]["bias"] = params["head"]["bias"].at[3 + ord("k")].set(100.0)
    folder = tmp_path_factory.mktemp("text")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(
            1, {"params": params, "ema": params, "process": make_process(TEXT_CONFIG.process, 259)},
            data_state=None, config=to_dict(TEXT_CONFIG), tokenizer=ByteTokenizer().to_dict(),
        )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "options, text, calls",
    [
        (["--prompt="], "kkkkkk", 4),
        (["--prompt=ab", "--length=8"], "abkkkkkk", 4),
        (["--prompt=ab", "--steps=10"], "abkkkk", 4),  # no more calls than tokens
        (["--prompt=a[[3]]b[[1]]c"], "akkkbkc", 4),
        (["--prompt=a", "--sampler=ancestral", "--top_k=3", "--top_p=0.5", "--temperature=0.1"], "akkkkk", None),
        (["--prompt=a", "--sampler=remdm", "--remask=loop", "--remask_window=0.2,0.8", "--remask_strength=.1"],
         "akkkkk", 4),
        (["--prompt=a", "--threshold=0.9", "--score=margin"], "akkkkk", 1),
        (["--prompt=a", "--guidance=2"], "akkkkk", 8),
        (["--prompt=a", "--block_size=3"], "akkkkk", None),
    ],
)  # fmt: skip
def test_running_text(text_workdir, capsys, options, text, calls):
    assert run(f"--checkpoint={text_workdir}", *options) == 0
    shown = capsys.readouterr()
    assert shown.out == text + "\n"
    said = shown.err.splitlines()[-1]
    assert said.startswith("network calls: ") and said.endswith(" for each sample")
    assert calls is None or said == f"network calls: {calls} for each sample"


def test_stages_of_running_text_show_the_masks(text_workdir, capsys):
    assert run(f"--checkpoint={text_workdir}", "--prompt=a[[4]]b", "--show_trajectory") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 0/4  a▯▯▯▯b" and lines[4] == "step 4/4  akkkkb" and lines[5:] == ["", "akkkkb"]
    assert [line.count("▯") for line in lines[:5]] == [4, 3, 2, 1, 0]


def test_running_text_file_to_file(text_workdir, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"src": ""}\n{"src": "ab"}\n', encoding="utf-8")
    assert run(f"--checkpoint={text_workdir}", f"--input={source}", f"--output={output}") == 0
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert found == [
        {"src": "", "samples": ["kkkkkk"], "network_calls": 4},
        {"src": "ab", "samples": ["abkkkk"], "network_calls": 4},
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt=abcdef"], "text 1 of 1 has 6 tokens, which leaves none of the 6 to write"),
        (["--prompt=a", "--eta=0.5"], "--eta has no meaning with sampler 'confidence': it is for ddim"),
        (["--prompt=a", "--remask=cap"], "--remask has no meaning with sampler 'confidence': it is for remdm"),
        (["--prompt=a", "--length_choice=first"], "length='first' is for masked models of pairs"),
        (["--prompt=a", "--remask_window=0.5"], "expected 2 values"),
        (["--prompt=a", "--sampler=ddim"], "takes ancestral, confidence, low_confidence, remdm"),
        (["--prompt=a", "--score=luck"], "score='luck'"),
    ],
)
def test_user_errors_with_running_text(text_workdir, capsys, options, message):
    assert run(f"--checkpoint={text_workdir}", *options) != 0
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""


def test_help(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert "--show_trajectory" in shown and "--[no]reuse_logits" in shown and "--length_choice" in shown


def test_every_sampling_setting_has_a_flag():
    settings = {field.name for field in fields(SamplingConfig)}
    assert set(sampling_flags.HELP) == settings and set(sampling_flags.READ_BY) <= settings
