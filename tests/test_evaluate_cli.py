"""The evaluate command: what it writes, the model it calls, and its errors. The model is a fake."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dimba_jax import evaluate
from dimba_jax.config import DataConfig, ProcessConfig, RunConfig
from dimba_jax.evals.tasks import seq2seq

ROWS = {
    "train": [("what is a cat ?", "what are cats ?"), ("why is water wet ?", "what makes water wet ?")],
    "valid": [("how tall is a tree ?", "how high are trees ?")],
    "test": [
        ("How do I cook rice?", "What is the way to cook rice?"),
        ("What is a  CAT ?", "What would you call a cat?"),
        ("Why do we sleep at night?", ["What is the reason that we sleep at night?", "Why is there sleep?"]),
    ],
}
RECIPE = """
from dimba_jax.config import RunConfig, to_config_dict

def get_config(size="small"):
    if size != "small":
        raise ValueError(f"size {size!r}: only small")
    return to_config_dict(RunConfig(name="toy"))
"""


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in ROWS.items():
        lines = (json.dumps({"src": source, "trg": target}) + "\n" for source, target in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def model(monkeypatch, data):
    """Puts a fake in the place of loading and generating; returns what they were called with."""
    calls = types.SimpleNamespace(config=RunConfig(name="toy", data=DataConfig(path=str(data))))

    def load(workdir, step=None, ema=None, scan_layers=None):
        if not Path(workdir).exists():
            raise FileNotFoundError(f"{workdir} holds no checkpoint: train one first")
        calls.load = (workdir, step, ema, scan_layers)
        return types.SimpleNamespace(config=calls.config, step=700 if step is None else step, others=())

    def with_others(model, named, others, *, ema=None, scan_layers=None):
        calls.ensemble = (named, list(others), ema, scan_layers)
        return types.SimpleNamespace(config=model.config, step=model.step, others=tuple((path, 30) for path in others))

    def generate(model, prompts, settings, *, seed=0, progress=False, stages=0):
        calls.prompts, calls.settings, calls.seed = list(prompts), settings, seed
        endings = ("of course", "?", "?", "please ?")
        return [
            types.SimpleNamespace(
                prompt=prompt,
                texts=tuple(f"{prompt.rstrip('?')} {endings[i % 4]}" for i in range(settings.num_samples)),
                network_calls=settings.steps,
                trajectory=(),
            )
            for prompt in prompts
        ]

    for name, function in {"load": load, "generate": generate, "ensemble": with_others}.items():
        module = types.ModuleType(f"dimba_jax.sampling.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def run(*arguments: object) -> int:
    return evaluate.main(["evaluate", *map(str, arguments)])


def test_a_checkpoint_is_sampled_and_scored(tmp_path, model, capsys):
    output = tmp_path / "new" / "eval.json"
    output.parent.mkdir()
    assert run(f"--checkpoint={tmp_path}", "--mbr=1,3,4", "--steps=7", "--seed=3", f"--output={output}") == 0
    report = json.loads(output.read_text())
    assert (report["split"], report["rows"], report["unseen_rows"]) == ("test", 3, 2)
    assert list(report["systems"]) == ["model", "model_mbr3", "model_mbr4", "copy"]
    assert list(report["systems"]) == list(report["unseen"])
    assert report["systems"]["model_mbr4"]["network_calls"] == 28
    metadata = report["metadata"]
    assert (metadata["step"], metadata["seed"], metadata["checkpoint"]) == (700, 3, str(tmp_path))
    assert metadata["sampling"]["steps"] == 7 and metadata["sampling"]["num_samples"] == 4
    assert model.prompts == [source for source, _ in ROWS["test"]]
    assert (model.settings.num_samples, model.seed) == (4, 3)
    assert model.settings == dataclasses.replace(model.config.sampling, steps=7, num_samples=4)
    lines = [json.loads(line) for line in (output.parent / "eval.examples.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert [line["unseen"] for line in lines] == [True, False, True]
    assert lines[2]["references"] == ROWS["test"][2][1]
    assert len(lines[0]["samples"]) == 4 and lines[0]["chosen"] == {"1": 0, "3": 1, "4": 1}
    assert sorted(path.name for path in output.parent.iterdir()) == ["eval.examples.jsonl", "eval.json"]
    printed = capsys.readouterr().out
    assert "model_mbr4" in printed and "2 of them unseen" in printed


def test_samples_are_scored_again_without_the_model(tmp_path, model):
    first, again = tmp_path / "eval.json", tmp_path / "again.json"
    assert run(f"--checkpoint={tmp_path}", "--mbr=1,3", "--num_samples=4", f"--output={first}") == 0
    assert run(f"--samples={tmp_path}/eval.examples.jsonl", "--mbr=1,3", f"--output={again}") == 0
    one, two = json.loads(first.read_text()), json.loads(again.read_text())
    one.pop("metadata"), two.pop("metadata")
    assert one == two
    examples = [tmp_path / f"{stem}.examples.jsonl" for stem in ("eval", "again")]
    assert examples[0].read_text() == examples[1].read_text()
    assert run(f"--samples={examples[0]}", "--mbr=4", "--limit=1", f"--output={again}") == 0
    assert json.loads(again.read_text())["rows"] == 1


def test_the_copy_baseline_needs_no_checkpoint(tmp_path, recipe, data):
    output = tmp_path / "copy.json"
    config = [f"--config={recipe}", f"--config.data.path={data}"]
    assert run("--system=copy", *config, "--split=test", f"--output={output}") == 0
    report = json.loads(output.read_text())
    assert list(report["systems"]) == ["copy"]
    assert report["systems"]["copy"]["bleu_source"] == 1.0
    assert report["unseen_rows"] == 2
    assert run("--system=copy", *config, "--split=valid", f"--output={output}") == 0
    report = json.loads(output.read_text())
    assert report["unseen_rows"] == 1  # validation rows are looked up in the training split alone
    (data / "train.jsonl").unlink()
    assert run("--system=copy", *config, "--nounseen", f"--output={output}") == 0
    assert json.loads(output.read_text())["unseen"] is None


def test_limit_takes_the_first_rows(tmp_path, model):
    output = tmp_path / "eval.json"
    assert run(f"--checkpoint={tmp_path}", "--limit=2", f"--output={output}") == 0
    assert json.loads(output.read_text())["rows"] == 2
    assert model.prompts == [source for source, _ in ROWS["test"][:2]]


def test_another_data_path_and_checkpoint_step(tmp_path, model, data):
    model.config = dataclasses.replace(model.config, data=DataConfig(path="/nowhere"))
    output = tmp_path / "eval.json"
    arguments = [f"--checkpoint={tmp_path}", f"--data_path={data}", "--checkpoint_step=9", "--noema", "--noscan_layers"]
    assert run(*arguments, f"--output={output}") == 0
    assert model.load == (str(tmp_path), 9, False, False)
    metadata = json.loads(output.read_text())["metadata"]
    assert metadata["step"] == 9 and metadata["sampling"]["ema"] is False


@pytest.mark.parametrize("given", (["--ensemble=a,b"], ["--ensemble=a", "b"], ["--ensemble=a", "--ensemble=b"]))
def test_models_that_write_together(tmp_path, model, given):
    output = tmp_path / "eval.json"
    assert run(f"--checkpoint={tmp_path}", "--noema", "--noscan_layers", *given, f"--output={output}") == 0
    assert model.ensemble == (str(tmp_path), ["a", "b"], False, False)
    metadata = json.loads(output.read_text())["metadata"]
    assert metadata["ensemble"] == [["a", 30], ["b", 30]] and metadata["checkpoint"] == str(tmp_path)
    assert run(f"--checkpoint={tmp_path}", f"--output={output}") == 0
    assert "ensemble" not in json.loads(output.read_text())["metadata"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give exactly one of --checkpoint=WORKDIR, --system=copy, --samples=FILE; got none"),
        (["--checkpoint=W", "--system=copy"], "got --checkpoint=WORKDIR and --system=copy"),
        (["--checkpoint=none", "--output=x.json"], "none holds no checkpoint"),
        (["--checkpoint=.", "--output=.", "--limit=2"], "--output=. is a folder"),
        (["--checkpoint=."], "--output=FILE is missing"),
        (["--checkpoint=.", "--output=x.json", "--mbr=1,0"], "--mbr=1,0"),
        (["--checkpoint=.", "--output=x.json", "--mbr=ten"], "--mbr=ten"),
        (["--checkpoint=.", "--output=x.json", "--mbr_gain=rouge"], "value should be one of <bleu|ibleu>"),
        (["--checkpoint=.", "--output=x.json", "--mbr=5", "--num_samples=2"], "--num_samples=2 is fewer than --mbr=5"),
        (["--checkpoint=.", "--output=x.json", "--steps=2000"], "config.sampling.steps=2000 exceeds"),
        (["--checkpoint=.", "--output=x.json", "--guidance=3"], "condition_dropout"),
        (["--checkpoint=.", "--output=x.json", "--sampler=magic"], "choose one of 'ddpm', 'ddim', 'dpmpp'"),
        (["--checkpoint=.", "--output=x.json", "--split=dev"], "value should be one of <train|valid|test>"),
        (["--checkpoint=.", "--output=x.json", "--limit=0"], "not a positive integer"),
        (["--checkpoint=.", "--output=x.json", "--stepz=5"], "Did you mean: steps"),
        (["--checkpoint=.", "--output=x.json", "stray"], "unexpected argument 'stray'"),
        (["--samples=none.jsonl", "--output=x.json"], "none.jsonl"),
        (["--samples=none.jsonl", "--output=x.json", "--steps=5"], "--steps only has a meaning with --checkpoint"),
        (
            ["--samples=none.jsonl", "--output=x.json", "--ensemble=W"],
            "--ensemble only has a meaning with --checkpoint",
        ),
        (["--system=copy", "--config=toy.py", "--output=x.json", "--ensemble=W"], "--ensemble only has a meaning with"),
        (["--system=copy", "--config=toy.py", "--output=x.json", "--noscan_layers"], "--scan_layers only has"),
        (["--samples=none.jsonl", "--output=x.json", "--scan_layers"], "--scan_layers only has a meaning with"),
        (["--ensemble=W", "--output=x.json"], "give exactly one of --checkpoint=WORKDIR"),
        (["--checkpoint=.", "--task=likelihood", "--ensemble=W"], "--ensemble only has a meaning with --task=seq2seq"),
        (["--checkpoint=.", "--task=generation", "--ensemble=W"], "--ensemble only has a meaning with --task=seq2seq"),
        (["--system=copy", "--output=x.json"], "--system=copy needs --config=RECIPE"),
        (["--system=copy", "--output=x.json", "--config=none.py"], "--config=none.py: no such file"),
        (["--system=copy", "--output=x.json", "--config=toy.py:big"], "size 'big': only small"),
        (["--system=copy", "--output=x.json", "--config=toy.py"], "config.data.path is not set"),
        (["--system=copy", "--output=x.json", "--config=toy.py", "--config.data.path=none"], "none: no such folder"),
        (["--system=copy", "--output=x.json", "--config=toy.py", "--config.data.paht=none"], "no setting 'paht'"),
        (["--system=copy", "--output=x.json", "--config=toy.py", "--config.seed=one"], "one"),
        (["--system=copy", "--output=x.json", "--config=toy.py", "--config.data.source=csv"], "config.data.source"),
    ],
)
def test_errors_are_one_message(tmp_path, monkeypatch, model, recipe, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    model.config = dataclasses.replace(model.config, process=ProcessConfig(timesteps=1000))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ") and message in error
    assert len(error.splitlines()) == 1 or "config.data.path is not set" in error  # which lists the ways
    assert "Traceback" not in error
    assert not (tmp_path / "x.json").exists()


def test_a_checkpoint_that_does_not_fit(tmp_path, model, monkeypatch, capsys):
    from dimba_jax.checkpoint import CheckpointError

    def load(*_, **__):
        raise CheckpointError("params.table has shape (3,)")

    monkeypatch.setattr(sys.modules["dimba_jax.sampling.load"], "load", load)
    assert run("--checkpoint=W", f"--output={tmp_path}/x.json") == 2
    assert capsys.readouterr().err == "evaluate: params.table has shape (3,)\n"


def test_too_few_samples_in_a_file(tmp_path, model, capsys):
    assert run(f"--checkpoint={tmp_path}", "--mbr=3", f"--output={tmp_path}/eval.json") == 0
    assert run(f"--samples={tmp_path}/eval.examples.jsonl", "--mbr=10", f"--output={tmp_path}/b.json") == 2
    assert "--mbr=10 needs as many samples a row" in capsys.readouterr().err


def test_missing_training_split_says_how_to_go_on(tmp_path, recipe, data, capsys):
    (data / "train.jsonl").unlink()
    config = [f"--config={recipe}", f"--config.data.path={data}"]
    assert run("--system=copy", *config, f"--output={tmp_path}/x.json") == 2
    assert "--nounseen" in capsys.readouterr().err


def test_a_failure_leaves_the_old_report(tmp_path, model, monkeypatch):
    output = tmp_path / "eval.json"
    output.write_text("old")

    def fail(*_, **__):
        raise RuntimeError("accelerator lost")

    monkeypatch.setattr(sys.modules["dimba_jax.sampling.generate"], "generate", fail)
    with pytest.raises(RuntimeError):
        run(f"--checkpoint={tmp_path}", f"--output={output}")
    assert output.read_text() == "old"


def test_a_failed_write_leaves_the_old_report(tmp_path, model, monkeypatch):
    output = tmp_path / "eval.json"
    output.write_text("old")
    monkeypatch.setattr(seq2seq, "report_json", lambda report: 3)
    with pytest.raises(TypeError):
        run(f"--checkpoint={tmp_path}", f"--output={output}")
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["eval.json"]


def test_bertscore_without_its_package(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    assert run(f"--checkpoint={tmp_path}", "--bertscore", f"--output={tmp_path}/x.json") == 2
    error = capsys.readouterr().err
    assert "[bertscore]" in error and len(error.splitlines()) == 1


def test_bertscore_without_its_weights(tmp_path, model, capsys, monkeypatch):
    def scorer(**_):
        raise OSError("We couldn't connect\nand more")

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(BERTScorer=scorer))
    assert run(f"--checkpoint={tmp_path}", "--bertscore", f"--output={tmp_path}/x.json") == 2
    error = capsys.readouterr().err
    assert "cannot load the weights microsoft/deberta-xlarge-mnli (We couldn't connect)" in error
    assert len(error.splitlines()) == 1


def test_help_lists_the_flags(capsys):
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert "--mbr" in printed and "--system=copy" in printed


def test_the_module_runs_and_never_imports_training(tmp_path, recipe, data):
    arguments = ["evaluate", "--system=copy", f"--config={recipe}", f"--config.data.path={data}",
                 f"--output={tmp_path}/copy.json"]  # fmt: skip
    code = (
        "import sys; from dimba_jax import evaluate\n"
        f"assert evaluate.main({arguments!r}) == 0\n"
        "sys.exit(any(name.startswith('dimba_jax.training') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    result = subprocess.run(
        [sys.executable, "-m", "dimba_jax.evaluate", "--wrong=1"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
