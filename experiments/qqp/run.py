"""Trains the systems of this study and scores them on all test rows, a line of results.json each.

    python experiments/qqp/run.py --data=DIR --work=runs --system=DiffuMamba
    python experiments/qqp/run.py --data=DIR --work=runs --system=DIMBA --seed=1 --minutes=9   # goes on when run again
    python experiments/qqp/run.py --data=DIR --work=runs --system=DiffuMamba --calls=2,4,8,16   # after training

DIR holds DiffuSeq's train*.jsonl, valid.jsonl and test.jsonl. A system is a recipe of configs/, whose sampling settings
were chosen on the validation split. Training is `python -m dimba_jax.train` in WORK/SYSTEM-SEED; after --minutes it is
told to save and end, and the exit status is 3 until it is done. Minutes of training are those of its processes from
start to end, compilation, validation and checkpoints included, over all starts (one that finds nothing to do, too).
--calls scores one sample for each number of sampling steps. Flags as --config.training.steps=100 are handed on to
training. Sentences a second are those of one sample each in a second round, whose programs are compiled. A line that
is measured again takes the place of the one before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPES = {
    "MambaDiff": ("mambadiff_qqp", "gaussian", "Mamba"),
    "DIMBA": ("qqp", "gaussian", "Mamba-2"),
    "DiffuSeq": ("diffuseq_qqp", "gaussian", "Transformer"),
    "DiffuMamba": ("qqp_masked", "masked", "Mamba-2"),
    "DiffuMamba-H": ("qqp_masked:h", "masked", "Mamba-2 and attention"),
    "DiffuTran": ("qqp_masked:tran", "masked", "Transformer"),
    "AR Transformer": ("qqp_masked:ar", "autoregressive", "Transformer"),
    "AR Mamba": ("qqp_masked:ar-mamba", "autoregressive", "Mamba-2"),
}
HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
FIGURES = ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "div4", "self_bleu", "length")
WALL = "wall.json"  # in a workdir: seconds of each training process
UNFINISHED = 3


def train(options: argparse.Namespace, workdir: Path) -> bool:
    """Trains until it is done or time is up; whether it is done."""
    recipe, variant = (*RECIPES[options.system][0].split(":"), "")[:2]
    config = f"{CONFIGS / recipe}.py" + (f":{variant}" if variant else "")
    command = [sys.executable, "-m", "dimba_jax.train", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.data.path={options.data}", f"--seed={options.seed}", *options.settings]
    wall = workdir / WALL
    spent = json.loads(wall.read_text()) if wall.exists() else []
    began = time.monotonic()
    process = subprocess.Popen(command)
    try:
        status = process.wait(None if options.minutes is None else 60 * options.minutes)
        done = status == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves first
        status, done = process.wait(), False
    finally:
        wall.write_text(json.dumps([*spent, time.monotonic() - began]) + "\n")
    if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        raise SystemExit(f"training ended with status {status}")
    return done


def score(options: argparse.Namespace, workdir: Path) -> list[dict[str, Any]]:
    """The lines of a trained system."""
    import jax
    from flax import nnx

    from dimba_jax.data.sources import load_split
    from dimba_jax.evals.report import evaluate_outputs
    from dimba_jax.sampling.generate import generate
    from dimba_jax.sampling.load import load

    model = load(workdir)
    if model.step < model.config.training.steps:
        print(f"{workdir} is at step {model.step} of {model.config.training.steps}: run again, without --calls")
        raise SystemExit(UNFINISHED)
    data = dataclasses.replace(model.config.data, path=str(options.data))
    examples = load_split(data, options.split)[: options.limit]
    known = [text for split in ("train", "valid") for e in load_split(data, split) for text in (e.source, *e.targets)]
    prompts = [example.source for example in examples]
    seconds = json.loads((workdir / WALL).read_text())
    _, objective, backbone = RECIPES[options.system]
    common = {
        "system": options.system, "objective": objective, "backbone": backbone, "device": jax.devices()[0].device_kind,
        "params": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.denoiser, nnx.Param))),
        "train_minutes": round(sum(seconds) / 60, 2), "train_steps": model.step, "seed": options.seed,
        "split": options.split,
    }  # fmt: skip
    sampling = dataclasses.replace(model.config.sampling, batch_size=options.batch_size, num_samples=1)
    cases = [dataclasses.replace(sampling, steps=steps) for steps in options.calls] or [
        dataclasses.replace(sampling, num_samples=max(options.mbr))
    ]
    lines = []
    for settings in cases:
        made = generate(model, prompts, settings, seed=options.seed, progress=True)
        sizes = [1] if options.calls else options.mbr
        calls = made[0].network_calls
        report = evaluate_outputs(examples, [g.texts for g in made], known, sizes, calls, split=options.split)
        alone = dataclasses.replace(settings, num_samples=1)
        generate(model, prompts, alone, seed=1)
        began = time.monotonic()
        generate(model, prompts, alone, seed=2)
        a_second = len(prompts) / (time.monotonic() - began)
        for subset, systems in (("all", report["systems"]), ("unseen", report["unseen"])):
            count = report["rows"] if subset == "all" else report["unseen_rows"]
            for size in sizes:
                figures = systems["model" if size == 1 else f"model_mbr{size}"]
                lines.append(
                    common
                    | {"subset": subset, "rows": count, "mbr": size, "network_calls": figures["network_calls"]}
                    | {name: figures[name] for name in FIGURES}
                    | {
                        "sentences_per_s": round(a_second, 2) if size == 1 else None,
                        "steps": settings.steps,
                        "curve": bool(options.calls),
                    }
                )
            copied = {"system": "copy", "subset": subset, "rows": count, "split": options.split, "mbr": 1}
            lines.append(copied | {"network_calls": 0} | {name: systems["copy"][name] for name in FIGURES})
        if not options.calls:
            unselected(workdir, examples, [g.texts[0] for g in made])
        for line in lines[-2 * len(sizes) - 2 :]:
            shown = {k: line[k] for k in ("system", "subset", "mbr", "network_calls", "bleu", "ibleu", "bleu_source")}
            print(json.dumps(shown), flush=True)
    return lines


def unselected(workdir: Path, examples: list[Any], texts: list[str], count: int = 10) -> None:
    """Keeps the first rows beside what was made of them, as they come."""
    rows = [
        {"source": e.source, "reference": e.targets[0], "text": text}
        for e, text in zip(examples[:count], texts, strict=False)
    ]
    (workdir / "first_rows.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What a line is the figure of: one measured again takes the place of the one before."""
    steps = line.get("steps") if line.get("curve") else None  # without, a line is of the recipe's own settings
    return steps, *(line.get(name) for name in ("system", "split", "subset", "mbr", "seed", "curve"))


def keep(path: Path, lines: list[dict[str, Any]]) -> None:
    """Puts lines into a file of results."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {key(line): line for line in known} | {key(line): line for line in lines}
    rows = sorted(found.values(), key=lambda line: json.dumps(key(line), default=str))
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=RECIPES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0, help="of training and of sampling")
    parser.add_argument("--minutes", type=float, help="after which training saves and ends; it goes on when run again")
    parser.add_argument("--split", default="test", choices=["valid", "test"])
    parser.add_argument("--limit", type=int, help="only so many rows; for trying out")
    parser.add_argument("--mbr", type=numbers, default=[1, 10], help="numbers of samples to choose among")
    parser.add_argument("--calls", type=numbers, default=[], help="score one sample with each of these steps instead")
    parser.add_argument("--batch_size", type=int, default=2500, help="rows of a sampling call")
    parser.add_argument("--results", type=Path, help="results.json beside this script unless given")
    options, options.settings = parser.parse_known_args()
    if wrong := [flag for flag in options.settings if not flag.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}; flags that begin with --config. are those of train")
    if options.limit and not options.results:
        parser.error("--limit scores a part of the rows: name another file with --results")
    options.results = options.results or HERE / "results.json"
    workdir = options.work / f"{options.system.replace(' ', '_')}-{options.seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    if not options.calls and not train(options, workdir):
        raise SystemExit(UNFINISHED)
    keep(options.results, score(options, workdir))


if __name__ == "__main__":
    main()
