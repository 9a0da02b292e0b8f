"""Tasks of lm-evaluation-harness on a tiny checkpoint: local files, through the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dimba_jax.evals import harness
from dimba_jax.evals.conditional import Conditional
from dimba_jax.evals.harness_generation import write_on

DOCUMENTS = [
    {"question": "the owl eats a", "choices": ["mouse", "stone"], "answer": 0},
    {"question": "[[3]] the cat", "choices": ["sat", "sings"], "answer": 1},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["x"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    pytest.importorskip("lm_eval", reason="needs the extra harness: pip install -e '.[harness]'")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    for name, text in {"choice": CHOICE, "writing": WRITING, "rolling": ROLLING}.items():
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def run(*arguments: object) -> int:
    return harness.main(["harness", *map(str, arguments)])


def test_tasks_of_every_kind(tasks, make_config, make_model, save_model, tmp_path, capsys):
    model = make_model(make_config(data={"target_length": 32}), letters=True)
    workdir, output = save_model(model, tmp_path / "run"), tmp_path / "harness.json"
    names = "tiny_choice,tiny_writing,tiny_rolling"
    arguments = [f"--checkpoint={workdir}", f"--tasks={names}", f"--include_path={tasks}", f"--output={output}"]
    assert run(*arguments, "--draws=2", "--seed=5", "--batch_size=2") == 0
    results = json.loads(output.read_text())
    config = results["config"]
    assert (config["draws"], config["draws_seed"], config["loglikelihood"]) == (2, 5, "lower bound")
    assert config["process"] == "masked" and config["mean_standard_error_nats"] > 0

    scores = Conditional(model, draws=2, seed=5, batch_size=2)
    right = 0
    for document in DOCUMENTS:
        logps = [scores.score(document["question"], " " + choice).logp for choice in document["choices"]]
        right += logps.index(max(logps)) == document["answer"]
    assert results["results"]["tiny_choice"]["acc,none"] == right / 2
    nats = sum(scores.rolling(document["question"]) for document in DOCUMENTS)
    size = sum(len(document["question"]) for document in DOCUMENTS)
    assert results["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(-nats / size / 0.6931472)
    assert results["results"]["tiny_writing"]["exact_match,none"] == 0.0
    printed = capsys.readouterr().out
    assert "tiny_choice" in printed and "means of 2 draws with a standard error of" in printed


@pytest.mark.parametrize("flag, scanned", [([], True), (["--noscan_layers"], False)])
def test_layers_one_by_one(tasks, make_config, make_model, save_model, tmp_path, monkeypatch, flag, scanned):
    from dimba_jax.evals import harness_model

    found, made = [], harness_model.HarnessModel

    def spy(*given, model, **more):
        found.append(model.denoiser.stack.scan_layers)
        return made(*given, model=model, **more)

    monkeypatch.setattr(harness_model, "HarnessModel", spy)
    workdir = save_model(make_model(make_config(data={"target_length": 32})), tmp_path / "run")
    assert run(f"--checkpoint={workdir}", "--tasks=tiny_rolling", f"--include_path={tasks}", "--draws=1", *flag) == 0
    assert found == [scanned]


def test_what_the_adapter_gives_back(tasks, make_config, make_model):
    from lm_eval.api.instance import Instance

    from dimba_jax.evals.harness_model import HarnessModel

    model = make_model(
        make_config(data={"target_length": 32}, process={"kind": "autoregressive"}, model={"direction": "causal"}),
        letters=True,
    )
    wrapped = HarnessModel(model=model, show_progress=False)

    def ask(kind, *requests):
        found = [Instance(kind, {}, arguments, i) for i, arguments in enumerate(requests)]
        return getattr(wrapped, kind)(found)

    greedy = {"until": ["\n"], "max_gen_toks": 3}
    (text,) = ask("generate_until", ("the owl", greedy))
    assert len(text) == 3 and text == ask("generate_until", ("the owl", greedy))[0]
    # what it writes is what it calls greedy
    assert ask("loglikelihood", ("the owl", text), ("the owl", text[:2] + "_"))[0][1]
    assert not ask("loglikelihood", ("the owl", text[:2] + "_"))[0][1]
    (stopped,) = ask("generate_until", ("the owl", greedy | {"until": text[1]}))
    assert stopped == text.partition(text[1])[0]
    longer = greedy | {"max_gen_toks": 8}
    sampled = longer | {"do_sample": True, "temperature": 5.0}
    assert ask("generate_until", ("the owl", sampled)) != ask("generate_until", ("the owl", longer))
    info = wrapped.get_model_info()
    assert info["draws"] == 1 and info["loglikelihood"] == "exact" and info["mean_standard_error_nats"] == 0.0


def test_contexts_are_taken_for_text_and_cut_to_fit(make_config, make_model):
    model = make_model(make_config(), letters=True)
    for context in ("[[3]] a", "0123456789" * 4, ""):
        text = write_on(model, context, model.config.sampling, tokens=5)
        assert len(text) == 5 and text.isalpha() and text.islower()
    assert write_on(model, "0123456789" * 4, model.config.sampling, tokens=100).isalpha()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks=x"], "--checkpoint=WORKDIR is missing"),
        (["--checkpoint=W"], "--tasks=A,B is missing"),
        (["--checkpoint=W", "--tasks=x", "--draws=0"], "not a positive integer"),
        (["--checkpoint=W", "--tasks=x", "--output=."], "is a folder"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run("--checkpoint=W", "--tasks=x") == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[harness]'" in error and len(error.splitlines()) == 1


def test_unknown_tasks_and_models_without_likelihood(tasks, make_config, save_model, tmp_path, capsys):
    arguments = [f"--checkpoint={tmp_path}/none", f"--include_path={tasks}"]
    assert run(*arguments, "--tasks=tiny_choice") == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert run(*arguments, "--tasks=tiny_choice,no_such_task") == 2
    assert "--tasks=no_such_task: the harness has no task of this name" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "dimba_jax.evals.harness", "--help"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and "--include_path" in result.stdout
