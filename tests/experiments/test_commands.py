"""The commands behind a study's figures, as its script runs them: they are accepted, and make what stands there."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done >> "$SAID"
echo >> "$SAID"
"""


@pytest.fixture
def commands(tmp_path):
    """What `sh commands.sh DIR` runs, in order: each command's script and its flags."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(STUB)
    python.chmod(0o755)
    script = EXPERIMENTS / "qqp" / "commands.sh"
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "SAID": str(said)}
    subprocess.run(["sh", str(script), str(tmp_path)], env=env, check=True)
    words = [text.split("\n") for text in said.read_text().strip("\n").split("\n\n")]
    found = [(name.removeprefix("experiments/qqp/"), flags) for name, *flags in words]
    assert {name for name, _ in found} == {"run.py", "mbr.py", "differences.py"}
    return found


def each(script, commands, monkeypatch):
    """The places of a script's commands; sys.argv is that of the command meanwhile."""
    for place, (name, flags) in enumerate(commands):
        if name == script:
            monkeypatch.setattr(sys, "argv", [name, *flags])
            yield place


class Scored(NamedTuple):
    place: int  # among all commands
    results: str
    line: tuple  # what names it
    sampling: dict
    flags: dict  # those of them that the command sets
    nospeed: bool
    teachers: list


def scored(study, monkeypatch, commands):
    """What run.py would score, each system trained before it is scored, and its teachers before it."""
    run, recipe = study("qqp", "run"), study(".", "recipe_files").recipe
    among = study("qqp", "sampling_settings").among
    made, scores, trained = [], [], {}

    def train(system, workdir, options, settings):
        if not (options.score_only or options.calls):
            taught_by = [Path(path).name for flag in settings[:1] for path in flag.split("=")[1].split(",")]
            assert set(taught_by) <= set(trained), workdir
            trained[workdir.name] = taught_by

    def score(system, workdir, options, names, others):
        assert {path.name for path in (workdir, *others)} <= set(trained), workdir
        assert options.score_only or options.calls or options.mbr == [1]  # what is drawn in other ways comes later
        name, _, variant = system.recipe.partition(":")
        flags = among(options.settings)
        sampling = recipe(name).get_config(variant).sampling.to_dict() | flags
        for steps in options.calls or [sampling["steps"]]:
            for mbr in [1] if options.calls else options.mbr:
                seed = str({"seed": options.seed, **names}["seed"])
                line = (options.label or names["system"], seed, options.split, bool(options.calls), steps, mbr, "bleu")
                rest = sampling | {"steps": steps}, flags, options.nospeed, trained[workdir.name]
                scores.append((options.results.name, line, *rest))

    monkeypatch.setattr(run, "score", score)
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "check_finished", lambda path: None)
    for place in each("run.py", commands, monkeypatch):
        scores.clear()
        run.main()
        made += [Scored(place, *one) for one in scores]
    return made


def chosen(study, monkeypatch, commands):
    """The names of the lines that mbr.py would write."""
    mbr, made = study("qqp", "mbr"), []
    for _ in each("mbr.py", commands, monkeypatch):
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
    assert {one.results for one in made} == {"results.json", "valid.json"}
    assert {one.line[2] for one in made if one.results == "valid.json"} == {"valid"}
    ours = [one for one in made if one.results == "results.json"]
    found = {(*one.line[:4], one.line[4] if one.line[3] else None, *one.line[5:]): one for one in ours}
    assert len(found) == len(ours), "two commands make the same line"
    assert set(found) == set(by_run)
    defaults = study("qqp", "sampling_settings").DEFAULTS
    for name, one in found.items():
        line = by_run[name]
        assert one.teachers == line.get("teachers", []), name
        assert one.sampling["steps"] == line["steps"] or line["objective"] == "autoregressive", name
        assert {key: one.sampling[key] for key in line["sampling"]} == line["sampling"], name
        # what a recipe sets since, the command sets to what it was then
        beside = {key: value for key, value in one.flags.items() if key not in line["sampling"]}
        assert beside == {key: defaults[key] for key in beside}, name
        if line["mbr"] == 1:
            assert one.nospeed == (line["sentences_per_s"] is None), name
    picked = chosen(study, monkeypatch, commands)
    assert Counter(picked) == Counter(by_choice)


def test_the_commands_are_those_of_the_differences(study, monkeypatch, commands):
    differences, made = study("qqp", "differences"), []
    for _ in each("differences.py", commands, monkeypatch):
        options = differences.parse()
        made.append(tuple(str(getattr(options, name)) for name in differences.COMPARISON))
    lines = map(json.loads, (EXPERIMENTS / "qqp" / "differences.jsonl").read_text().splitlines())
    assert Counter(made) == Counter({tuple(str(line[name]) for name in differences.COMPARISON) for line in lines})


def test_samples_are_drawn_before_they_are_chosen_among_and_compared(study, monkeypatch, commands):
    drawn = {one.line[:3] + one.line[5:6]: one.place for one in scored(study, monkeypatch, commands) if not one.line[3]}
    for script in ("mbr.py", "differences.py"):
        module = study("qqp", script.removesuffix(".py"))
        for place in each(script, commands, monkeypatch):
            options = module.parse()
            sides = [(options.system, options.seeds)]
            sides += [(options.than, options.than_seeds)] if script == "differences.py" else []
            for system, seeds in sides:
                for seed in seeds:
                    assert drawn[system, str(seed), options.split, options.mbr] < place, commands[place]


def test_no_folder_is_an_error_that_says_so(tmp_path):
    done = subprocess.run(["sh", str(EXPERIMENTS / "qqp" / "commands.sh"), str(tmp_path / "none")], capture_output=True)
    assert done.returncode == 2 and b"name the folder that holds train.jsonl" in done.stderr
