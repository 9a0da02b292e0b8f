"""Scores one checkpoint under many sampling settings, on the first rows of the validation split.

    python experiments/sweep.py --checkpoint=W --data_path=DIR --limit=512 \
        --grid='steps=20,50;eta=0,1;clamp_from=0,1' --output=sweep.jsonl

Every combination of the grid's values is sampled once and is one line of the table. The settings of
a recipe are chosen here; the test split is not touched.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from absl import app, flags
from sampling_settings import grid

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


def main(argv: list[str]) -> None:
    del argv
    try:
        choices = grid(GRID.value)
    except ValueError as error:
        raise app.UsageError(f"--grid: {error}") from error
    model = load(CHECKPOINT.value)
    data = model.config.data
    if DATA_PATH.value is not None:
        data = dataclasses.replace(data, path=DATA_PATH.value)
    examples = load_split(data, "valid")[: LIMIT.value]
    prompts = [example.source for example in examples]
    columns = ("bleu", "ibleu", "bleu_source", "rouge_l", "dist1", "length")
    lines, texts = [], []
    for choice in choices:
        settings = dataclasses.replace(model.config.sampling, **choice)
        started = time.perf_counter()
        made = generate(model, prompts, settings, seed=SEED.value)
        seconds = time.perf_counter() - started  # the compilation included
        report = evaluate_outputs(examples, [g.texts for g in made], None, network_calls=made[0].network_calls)
        systems = report["systems"]
        line = {"checkpoint": Path(CHECKPOINT.value).name, "step": model.step} | choice
        line |= {"of_steps": model.config.training.steps, "rows": len(examples)}
        for name, scores in systems.items():
            if name != "copy":
                line |= {f"{name}.{column}": round(scores[column], 4) for column in columns}
        line |= {"copy.bleu": round(systems["copy"]["bleu"], 4), "seconds": round(seconds, 1)}
        lines.append(line)
        texts.append([g.texts[0] for g in made[:8]])
        print(" ".join(f"{k}={v}" for k, v in line.items()), flush=True)
        if OUTPUT.value:
            with open(OUTPUT.value, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    best = max(range(len(lines)), key=lambda place: lines[place]["model.bleu"])
    print("best:", json.dumps(lines[best]))
    for example, text in zip(examples[:8], texts[best], strict=True):
        print(f"  {example.source}\n    -> {text}\n    =  {example.targets[0]}")


if __name__ == "__main__":
    app.run(main)
