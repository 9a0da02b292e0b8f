"""Scores one checkpoint under many sampling settings, on the first rows of the validation split.

    python experiments/sweep.py --checkpoint=W --data_path=DIR --limit=512 \
        --grid='steps=20,50;eta=0,1;clamp_from=0,1' --output=sweep.jsonl

Every combination of the grid's values is sampled once and is one line of the table. The settings of
a recipe are chosen here; the test split is not touched.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path

from absl import app, flags

from dimba_jax.config import SamplingConfig
from dimba_jax.data.sources import load_split
from dimba_jax.evals.report import evaluate_outputs
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import load

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a trained model", required=True)
DATA_PATH = flags.DEFINE_string("data_path", None, "folder of the data, in place of the config's")
LIMIT = flags.DEFINE_integer("limit", 512, "rows of the validation split")
GRID = flags.DEFINE_string("grid", "steps=20,50", "settings and their values: 'steps=20,50;clamp_from=0,1'")
OUTPUT = flags.DEFINE_string("output", None, "a JSON line for each combination, appended")
SEED = flags.DEFINE_integer("seed", 0, "seed of the samples")


def combinations(grid: str) -> list[dict[str, object]]:
    """The settings of each line: values take the type of the setting's default."""
    defaults = dataclasses.asdict(SamplingConfig())
    axes = []
    for axis in filter(None, grid.split(";")):
        name, _, values = axis.partition("=")
        if name not in defaults:
            raise app.UsageError(f"--grid names {name!r}; the settings are {', '.join(defaults)}")
        axes.append([(name, _value(value, type(defaults[name]))) for value in values.split(",")])
    return [dict(choice) for choice in itertools.product(*axes)]


def _value(text: str, kind: type) -> object:
    if kind is not bool:
        return kind(text)
    if text not in ("True", "False"):
        raise app.UsageError(f"--grid has {text!r} where True or False belongs")
    return text == "True"


def main(argv: list[str]) -> None:
    del argv
    model = load(CHECKPOINT.value)
    data = model.config.data
    if DATA_PATH.value is not None:
        data = dataclasses.replace(data, path=DATA_PATH.value)
    examples = load_split(data, "valid")[: LIMIT.value]
    prompts = [example.source for example in examples]
    columns = ("bleu", "ibleu", "bleu_source", "rouge_l", "dist1", "length")
    lines = []
    for choice in combinations(GRID.value):
        settings = dataclasses.replace(model.config.sampling, **choice)
        started = time.perf_counter()
        made = generate(model, prompts, settings, seed=SEED.value)
        seconds = time.perf_counter() - started  # the compilation included
        report = evaluate_outputs(examples, [g.texts for g in made], None, network_calls=made[0].network_calls)
        systems = report["systems"]
        line = {"checkpoint": Path(CHECKPOINT.value).name, "step": model.step, "rows": len(examples)} | choice
        for name, scores in systems.items():
            if name != "copy":
                line |= {f"{name}.{column}": round(scores[column], 4) for column in columns}
        line |= {"copy.bleu": round(systems["copy"]["bleu"], 4), "seconds": round(seconds, 1)}
        lines.append(line)
        print(" ".join(f"{k}={v}" for k, v in line.items()), flush=True)
        if OUTPUT.value:
            with open(OUTPUT.value, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    best = max(lines, key=lambda line: line["model.bleu"])
    print("best:", json.dumps(best))
    settings = dataclasses.replace(model.config.sampling, **{k: best[k] for k in combinations(GRID.value)[0]})
    for example, g in zip(examples[:8], generate(model, prompts, settings, seed=SEED.value)[:8], strict=True):
        print(f"  {example.source}\n    -> {g.texts[0]}\n    =  {example.targets[0]}")


if __name__ == "__main__":
    app.run(main)
