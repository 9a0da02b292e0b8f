"""evaluate --task=likelihood and --task=generation from the command line to their files, on tiny checkpoints."""

import json
import math

import pytest

from dimba_jax import commandline, evaluate

TEXT = "the owl eats a mouse\nthe mouse eats cheese\n"
AR = {"process": {"kind": "autoregressive"}, "model": {"direction": "causal"}}


def run(*arguments: object) -> int:
    return evaluate.main(["evaluate", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text(TEXT)
    paths[1].write_text(TEXT * 3)
    return paths


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT * 20)
    return {"path": str(path), "text": {"valid_fraction": 0.1}}


def test_likelihood_of_files(make_config, make_model, save_model, data, files, tmp_path, capsys):
    workdir = save_model(make_model(make_config(data=data)), tmp_path / "run")
    output = tmp_path / "likelihood.json"
    command = [f"--checkpoint={workdir}", "--task=likelihood"]
    assert run(*command, f"--input={files[0]}", files[1], "--draws=2", "--seed=4", f"--output={output}") == 0
    report = json.loads(output.read_text())
    assert [text["name"] for text in report["texts"]] == [str(path) for path in files]
    assert [text["bytes"] for text in report["texts"]] == [len(TEXT), 3 * len(TEXT)]
    assert (report["value"], report["draws"], report["seed"]) == ("bound", 2, 4)
    metadata = report["metadata"]
    assert {name: metadata[name] for name in ("config", "checkpoint", "step")} == {
        "config": "dimba", "checkpoint": str(workdir), "step": 7,
    }  # fmt: skip
    assert metadata["environment"]["command"][1:3] == command and metadata["settings"]["data"]["source"] == "text"
    assert report["training_unigram"] == "given"
    first = report["texts"][0]
    assert first["model"][0]["bits_per_byte_se"] > 0 and first["baselines"]["gzip"]["bits_per_byte"] > 0
    printed = capsys.readouterr().out
    assert sum(line.startswith(str(path)) for path in files for line in printed.splitlines()) == 12  # 1 + 5 baselines
    assert "bound, 2 draws" in printed

    # nothing is written without an output; the same seed gives the same figures, whichever way files are named
    assert run(*command, f"--input={files[0]},{files[1]}", "--draws=2", "--seed=4") == 0
    assert capsys.readouterr().out == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.txt",
        "b.txt",
        "corpus.txt",
        "likelihood.json",
        "run",
    ]


def test_likelihood_of_the_split(make_config, make_model, save_model, data, tmp_path, capsys):
    workdir = save_model(make_model(make_config(data=data, **AR), scale=0.0), tmp_path / "run")
    output = tmp_path / "likelihood.json"
    command = [f"--checkpoint={workdir}", "--task=likelihood", f"--output={output}", "--notraining_unigram"]
    assert run(*command) == 0
    report = json.loads(output.read_text())
    (text,) = report["texts"]
    assert text["name"] == "valid" and text["bytes"] == len(TEXT) * 20 // 10
    assert report["value"] == "exact"
    assert text["model"][0]["bits_per_byte"] == pytest.approx(math.log2(259), rel=1e-5)
    assert "training" not in text["baselines"] and "--notraining_unigram" in capsys.readouterr().out
    assert report["metadata"]["settings"]["model"]["scan_layers"] is True
    assert run(*command, "--split=train", "--limit=3", "--batch_size=2", "--noscan_layers") == 0
    report = json.loads(output.read_text())
    (text,) = report["texts"]
    assert text["name"] == "train" and text["rows"] == 3 and text["bytes"] == 48
    assert report["metadata"]["settings"]["model"]["scan_layers"] is False


def test_generation(make_config, make_model, save_model, data, tmp_path, capsys):
    workdir = save_model(make_model(make_config(data=data), letters=True), tmp_path / "run")
    judge = save_model(make_model(make_config(data=data, **AR)), tmp_path / "judge")
    output = tmp_path / "generation.json"
    command = [f"--checkpoint={workdir}", "--task=generation", "--num_texts=3", f"--output={output}"]
    assert run(*command, "--length=8", "--steps=2", f"--judge={judge}", "--seed=1", "--noscan_layers") == 0
    report = json.loads(output.read_text())
    assert report["metadata"]["settings"]["model"]["scan_layers"] is False
    assert report["task"] == "generation" and report["judge"] == "judge"
    assert report["systems"]["model"]["texts"] == 3 and report["systems"]["model"]["gen_ppl"] > 1
    assert report["metadata"]["network_calls"] == 2 and report["metadata"]["sampling"]["steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "generation.examples.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 1, 2]
    assert all(len(line["text"]) == 8 and line["text"].isalpha() for line in lines)
    assert len({line["text"] for line in lines}) == 3
    assert "gen-PPL" in capsys.readouterr().out


def test_models_of_the_wrong_kind(make_config, make_model, save_model, data, tmp_path, files, capsys):
    pairs = {"source": "jsonl", "source_length": 8, "target_length": 8, "path": "/nowhere"}
    workdir = save_model(make_model(make_config(data=pairs)), tmp_path / "pairs")
    assert run(f"--checkpoint={workdir}", "--task=likelihood", f"--input={files[0]}") == 2
    assert "trained on pairs (data.source_length=8)" in capsys.readouterr().err
    assert run(f"--checkpoint={workdir}", "--task=generation", f"--output={tmp_path}/x.json") == 2
    assert "writes nothing without a prompt" in capsys.readouterr().err
    workdir = save_model(make_model(make_config(data=data)), tmp_path / "text")
    assert run(f"--checkpoint={workdir}", f"--output={tmp_path}/x.json") == 2
    assert "is a model of text, not of pairs" in capsys.readouterr().err
    assert run(f"--checkpoint={workdir}", "--task=likelihood", "--block_sizes=4,5") == 2
    assert "block size 5 does not divide" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_gaussian_checkpoint_has_no_likelihood(make_config, make_gaussian, save_model, tmp_path, capsys):
    workdir = save_model(make_gaussian(), tmp_path / "gaussian")
    assert run(f"--checkpoint={workdir}", "--task=likelihood") == 2
    error = capsys.readouterr().err
    assert "process.kind='gaussian'" in error and len(error.splitlines()) == 1


def test_files_that_cannot_be_read(make_config, make_model, save_model, data, tmp_path, files, capsys):
    workdir = save_model(make_model(make_config(data=data)), tmp_path / "run")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, message in [("none", "no such file"), ("empty", "is empty"), ("latin", "line 1: not UTF-8")]:
        assert run(f"--checkpoint={workdir}", "--task=likelihood", f"--input={files[0]},{tmp_path}/{name}.txt") == 2
        error = capsys.readouterr().err
        assert f"{name}.txt" in error and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task=likelihood"], "--checkpoint=WORKDIR is missing"),
        (["--task=generation"], "--checkpoint=WORKDIR is missing"),
        (["--task=generation", "--checkpoint=W"], "--output=FILE is missing"),
        (["--task=generation", "--checkpoint=W", "--output=x", "--num_samples=2"], "give --num_texts"),
        (["--task=perplexity", "--checkpoint=W"], "value should be one of <seq2seq|likelihood|generation>"),
        (["--task=likelihood", "--checkpoint=W", "--input="], "--input names no file"),
        (
            ["--task=likelihood", "--checkpoint=W", "--input=a", "--split=test"],
            "--split and --input exclude each other",
        ),
        (["--task=likelihood", "--checkpoint=W", "--input=a", "--data_path=b"], "--data_path and --input exclude"),
        (["--task=likelihood", "--checkpoint=W", "--block_sizes=4,x"], "--block_sizes=4,x: expected numbers"),
        (["--task=likelihood", "--checkpoint=W", "--draws=0"], "not a positive integer"),
        (["--task=likelihood", "--checkpoint=W", "--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--task=likelihood", "--checkpoint=W", "stray"], "unexpected argument 'stray'"),
        # flags of another task are refused, not passed over
        (["--task=likelihood", "--checkpoint=W", "--steps=3"], "--steps has no meaning with --task=likelihood"),
        (["--task=likelihood", "--checkpoint=W", "--mbr=3"], "--mbr only has a meaning with --task=seq2seq"),
        (["--task=likelihood", "--checkpoint=W", "--judge=J"], "--judge only has a meaning with --task=generation"),
        (["--task=generation", "--checkpoint=W", "--input=a"], "--input only has a meaning with --task=likelihood"),
        (["--task=generation", "--checkpoint=W", "--config=x.py"], "--config only has a meaning with --task=seq2seq"),
        (["--checkpoint=W", "--output=x", "--draws=3"], "--draws only has a meaning with --task=likelihood"),
        (["--checkpoint=W", "--output=x", "--length=3"], "--length only has a meaning with --task=generation"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(
        "from dimba_jax.config import RunConfig, to_config_dict\n"
        "def get_config():\n    return to_config_dict(RunConfig())\n"
    )
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ") and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments, files",
    [
        (["--input=a,b"], ["a", "b"]),
        (["--input=a", "--input=b,c"], ["a", "b", "c"]),
        (["--input=a", "b", "--seed=3", "c,d"], ["a", "b", "c,d"]),
        (["--seed=3"], None),
    ],
)
def test_files_are_named_in_three_ways(arguments, files):
    define = commandline.Flags()
    define.files("input", "files")
    define.integer("seed", 3, "a number")
    values = define.parse(["command", *arguments])
    assert values.input == files and values.seed == 3
