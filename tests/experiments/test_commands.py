"""The commands behind a study's figures, as its script runs them: they are accepted, and make what stands there."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done >> "$SAID"
echo >> "$SAID"
"""


@pytest.fixture
def commands(tmp_path):
    """What `sh commands.sh DIR` runs, by script: the flags of each command."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(STUB)
    python.chmod(0o755)
    script = EXPERIMENTS / "qqp" / "commands.sh"
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "SAID": str(said)}
    subprocess.run(["sh", str(script), str(tmp_path)], env=env, check=True)
    found = {}
    for text in said.read_text().strip("\n").split("\n\n"):
        name, *flags = text.split("\n")
        found.setdefault(name.removeprefix("experiments/qqp/"), []).append(flags)
    assert list(found) == ["run.py", "mbr.py", "differences.py"]
    return found


def scored(study, monkeypatch, commands):
    """What run.py would score: the file, a line's names, settings of sampling, whether speed is left out, teachers."""
    run, recipe = study("qqp", "run"), study(".", "recipe_files").recipe
    among = study("qqp", "sampling_settings").among
    made, taught_by = [], {}

    def train(system, workdir, options, settings):
        if not (options.score_only or options.calls):
            taught_by[workdir] = [Path(path).name for flag in settings[:1] for path in flag.split("=")[1].split(",")]

    def score(system, workdir, options, names, others):
        assert options.score_only or options.calls or options.mbr == [1]  # what is drawn in other ways comes later
        name, _, variant = system.recipe.partition(":")
        sampling = recipe(name).get_config(variant).sampling.to_dict() | among(options.settings)
        for steps in options.calls or [sampling["steps"]]:
            for mbr in [1] if options.calls else options.mbr:
                seed = str({"seed": options.seed, **names}["seed"])
                line = (options.label or names["system"], seed, options.split, bool(options.calls), steps, mbr, "bleu")
                rest = sampling | {"steps": steps}, options.nospeed, taught_by[workdir]
                made.append((options.results.name, line, *rest))

    monkeypatch.setattr(run, "score", score)
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "check_finished", lambda path: None)
    for flags in commands["run.py"]:
        monkeypatch.setattr(sys, "argv", ["run.py", *flags])
        run.main()
    return made


def chosen(study, monkeypatch, commands):
    """What mbr.py would choose, as `scored`; of how its samples were drawn it knows nothing."""
    mbr, made = study("qqp", "mbr"), []
    for flags in commands["mbr.py"]:
        monkeypatch.setattr(sys, "argv", ["mbr.py", *flags])
        options = mbr.parse()
        seed = "+".join(map(str, options.seeds))
        made.append((options.label or options.system, seed, options.split, False, options.mbr, options.gain))
    return made


def test_the_commands_are_those_of_the_results(study, monkeypatch, commands):
    results = json.loads((EXPERIMENTS / "qqp" / "results.json").read_text())
    lines = [line for line in results if line["system"] != "copy" and line["subset"] == "all"]
    by_run, by_choice = {}, set()
    for line in lines:
        names = (line["system"], str(line["seed"]), line["split"], line["curve"])
        if "gain" in line or line.get("together") == "samples":
            by_choice.add((*names, line["mbr"], line.get("gain", "bleu")))
        else:
            by_run[(*names, line["steps"] if line["curve"] else None, line["mbr"], "bleu")] = line
    made = scored(study, monkeypatch, commands)
    assert {name for name, *_ in made} == {"results.json", "valid.json"}
    assert {line[2] for name, line, *_ in made if name == "valid.json"} == {"valid"}
    ours = [one for name, *one in made if name == "results.json"]
    found = {(*line[:4], line[4] if line[3] else None, *line[5:]): rest for line, *rest in ours}
    assert len(found) == len(ours), "two commands make the same line"
    assert set(found) == set(by_run)
    for name, (settings, nospeed, taught_by) in found.items():
        line = by_run[name]
        assert taught_by == line.get("teachers", []), name
        assert settings["steps"] == line["steps"] or line["objective"] == "autoregressive", name
        assert {key: settings[key] for key in line["sampling"]} == line["sampling"], name
        if line["mbr"] == 1:
            assert nospeed == (line["sentences_per_s"] is None), name
    picked = chosen(study, monkeypatch, commands)
    assert Counter(picked) == Counter(by_choice)


def test_the_commands_are_those_of_the_differences(study, monkeypatch, commands):
    differences, made = study("qqp", "differences"), []
    for flags in commands["differences.py"]:
        monkeypatch.setattr(sys, "argv", ["differences.py", *flags])
        options = differences.parse()
        made.append(tuple(str(getattr(options, name)) for name in differences.COMPARISON))
    lines = map(json.loads, (EXPERIMENTS / "qqp" / "differences.jsonl").read_text().splitlines())
    assert Counter(made) == Counter({tuple(str(line[name]) for name in differences.COMPARISON) for line in lines})


def test_samples_are_drawn_before_they_are_chosen_among_and_compared(study, monkeypatch, commands):
    # of a split, a system and its seeds; the order within one script's commands is that of its text
    text = (EXPERIMENTS / "qqp" / "commands.sh").read_text()
    assert text.index("\nrun ") < text.index("choose --system") < text.index("compare $which")
    drawn = {line[:3] + line[5:6] for _, line, *_ in scored(study, monkeypatch, commands) if not line[3]}
    for script in ("mbr.py", "differences.py"):
        module = study("qqp", script.removesuffix(".py"))
        for flags in commands[script]:
            monkeypatch.setattr(sys, "argv", [script, *flags])
            options = module.parse()
            sides = [(options.system, options.seeds)]
            sides += [(options.than, options.than_seeds)] if script == "differences.py" else []
            for system, seeds in sides:
                assert {(system, str(seed), options.split, options.mbr) for seed in seeds} <= drawn, flags


def test_no_folder_is_an_error_that_says_so(tmp_path):
    done = subprocess.run(["sh", str(EXPERIMENTS / "qqp" / "commands.sh"), str(tmp_path / "none")], capture_output=True)
    assert done.returncode == 2 and b"name the folder that holds train.jsonl" in done.stderr
