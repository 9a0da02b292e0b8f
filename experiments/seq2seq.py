"""What studies of sequence-to-sequence tasks share: flags, training within a time, scores beside copying.

The scores are lines of a file of results (`seq2seq_lines`). With --label they have that name, and `weights` says whose
they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipe_files import CONFIGS
from sampling_settings import among
from seq2seq_lines import Line, check_label, keep, lines_of
from trainings import commit_of, minutes_of, run_training, teachers

UNFINISHED = 3  # exit status


class System(NamedTuple):
    recipe: str  # of configs/, with its variant
    objective: str
    backbone: str
    settings: tuple[str, ...] = ()  # flags of train beside the recipe

    @property
    def config(self) -> str:
        """What `--config` names."""
        name, _, variant = self.recipe.partition(":")
        return f"{CONFIGS / name}.py" + (f":{variant}" if variant else "")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags that all studies have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--work", type=Path, default=Path("runs"))
    made.add_argument("--seed", type=int, default=0, help="of training and of sampling")
    made.add_argument("--minutes", type=float, help="after which training saves and ends; it goes on when run again")
    made.add_argument("--split", default="test", choices=["valid", "test"])
    made.add_argument("--limit", type=int, help="only so many rows; for trying out")
    made.add_argument("--mbr", type=numbers, default=[1, 10], help="numbers of samples to choose among")
    made.add_argument("--calls", type=numbers, default=[], help="score one sample with each of these steps instead")
    made.add_argument(
        "--score_only", action="store_true", help="train nothing, score what is trained; flags of training are not read"
    )
    made.add_argument("--batch_size", type=int, default=2500, help="rows of a sampling call")
    made.add_argument("--label", help="scores of other sampling settings: their lines' name")
    made.add_argument("--nospeed", action="store_true", help="keep no sentences a second: not alone on the device")
    made.add_argument("--results", type=Path, help="results.json beside the script unless given")
    return made


def parse(made: argparse.ArgumentParser, results: Path, systems: Collection[str]) -> argparse.Namespace:
    """The flags given; those of train as `settings`. No label may be the name of one of the systems."""
    options = parse_with_settings(made)
    try:
        among(options.settings)
    except ValueError as error:
        made.error(f"--config.sampling: {error}")
    if not options.data.is_dir():
        made.error(f"--data={options.data}: no such folder")
    for name in ("mbr", "calls"):
        if not all(1 <= number for number in getattr(options, name)):
            made.error(f"--{name}: expected numbers from 1 on")
    for name in ("limit", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            made.error(f"--{name}: expected a number from 1 on")
    if options.label is not None and (not options.label or options.label in (*systems, "copy")):
        made.error(f"--label={options.label}: expected a name that no system's lines have")
    if options.label and not (options.calls or options.score_only):
        made.error("--label names scores of what is trained already: add --score_only or --calls")
    if options.limit and not options.results:
        made.error("--limit scores a part of the rows: name another file with --results")
    options.results = options.results or results
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `run_training` hears of it
    return options


def parse_with_settings(made: argparse.ArgumentParser) -> argparse.Namespace:
    options, options.settings = made.parse_known_args()
    if wrong := [flag for flag in options.settings if not flag.startswith("--config.")]:
        made.error(f"unknown: {' '.join(wrong)}; flags that begin with --config. are those of train")
    return options


def train(system: System, workdir: Path, options: argparse.Namespace, settings: Sequence[str] = ()) -> None:
    """Trains until it is done; if time is up before, ends this program with UNFINISHED.

    With --calls or --score_only it does nothing. What the system sets, the caller's settings and the command line's
    follow one another; the last one wins.
    """
    if options.calls or options.score_only:
        return
    flags = [f"--config.data.path={options.data}", f"--seed={options.seed}"]
    flags += [*system.settings, *settings, *options.settings]
    status = run_training(system.config, workdir, flags, options.minutes)
    if status not in (None, 0, -signal.SIGTERM, 128 + signal.SIGTERM):
        raise SystemExit(f"training ended with status {status}")
    if status != 0:
        raise SystemExit(UNFINISHED)


def check_trained_alike(config: Any, first: Any, path: str, other: Path) -> None:
    """Whether two networks of an ensemble differ in their seeds, and what they learned from, alone.

    Raises:
      SystemExit: in something else.
    """
    of, wanted = (
        dataclasses.replace(
            one, seed=0, data=dataclasses.replace(one.data, path=""), sampling=first.sampling,
            training=dataclasses.replace(one.training, teachers=bool(one.training.teachers)),
        )
        for one in (config, first)
    )  # fmt: skip
    if of != wanted:
        raise SystemExit(f"{path} was not trained as {other} was: networks of one line differ in their seeds alone")


def score(
    system: System,
    workdir: Path,
    options: argparse.Namespace,
    names: Line,
    data: Line | None = None,
    others: Sequence[Path] = (),
) -> None:
    """Scores a trained system; the lines of each case are in the file of results as soon as they are there.

    Minutes of training are those of all networks that it is made of or learned from. What networks learned from stands
    in the lines as `teachers`, the names of their workdirs.

    Args:
      others: workdirs of networks that write with it, as an ensemble; trained alike, but for their seeds.
      names: what tells these lines from those of other systems.
      data: settings of the data, where they are not the checkpoint's.
    """
    import jax
    from flax import nnx

    from dimba_jax.data.sources import load_split
    from dimba_jax.evals.records import make_records
    from dimba_jax.evals.report import make_report, score_rows
    from dimba_jax.sampling.ensemble import together
    from dimba_jax.sampling.generate import generate
    from dimba_jax.sampling.load import load

    names = {"seed": options.seed} | names
    if options.label:
        names |= {"system": options.label, "weights": names["system"]}
    check_label(options.results, options.label, names)
    loaded = {str(path): load(path) for path in (workdir, *others)}
    for path, one in loaded.items():
        if one.step < one.config.training.steps:
            print(f"{path} is at step {one.step} of {one.config.training.steps}: train it to the end")
            raise SystemExit(UNFINISHED)
        check_trained_alike(one.config, loaded[str(workdir)].config, path, workdir)
    model = together(loaded) if others else loaded[str(workdir)]
    minutes = minutes_of([workdir, *others])
    taught_by = sorted({path.name for one in (workdir, *others) for path in teachers(one)})
    trained_on = dataclasses.replace(model.config.data, path=str(options.data))
    examples = load_split(dataclasses.replace(trained_on, **(data or {})), options.split)[: options.limit]
    known = [
        text for name in ("train", "valid") for e in load_split(trained_on, name) for text in (e.source, *e.targets)
    ]
    common = names | {
        "objective": system.objective, "backbone": system.backbone, "device": jax.devices()[0].device_kind,
        "params": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.denoiser, nnx.Param))),
        "train_minutes": minutes, "train_steps": model.step, "split": options.split,
        "sampling": among(options.settings),
    } | ({"teachers": taught_by} if taught_by else {}) | ({} if others else commit_of(workdir))  # fmt: skip
    settings = among(options.settings) | {"num_samples": 1, "batch_size": options.batch_size}
    sampling = dataclasses.replace(model.config.sampling, **settings)
    chosen = [1] if options.calls else drawn_apart(options.mbr, model.config.process.kind, sampling)
    cases = [dataclasses.replace(sampling, steps=steps) for steps in options.calls] or [
        dataclasses.replace(sampling, num_samples=max(chosen))
    ]
    prompts = [example.source for example in examples]

    def sample(settings: Any, seed: int, progress: bool = False) -> Any:
        return generate(model, prompts, settings, seed=seed, progress=progress)

    for settings in cases:
        made = sample(settings, options.seed, progress=True)
        rows = score_rows(make_records(examples, [g.texts for g in made], known, made[0].network_calls), chosen)
        report = make_report(rows, options.split)
        one = dataclasses.replace(settings, num_samples=1)
        a_second = None if options.nospeed else sentences_a_second(sample, one, len(prompts))
        sampled = {"steps": settings.steps, "curve": bool(options.calls)}
        found = lines_of(report, chosen, common | sampled, a_second)
        for line in found:
            shown = {k: line[k] for k in ("system", "subset", "mbr", "network_calls", "bleu", "ibleu", "bleu_source")}
            print(json.dumps(shown), flush=True)
        keep(options.results, found)
        if not options.calls and not options.label and not options.limit:
            test = names.get("test")
            samples_file(workdir, options.split, max(chosen), test).write_text(
                "".join(row.to_line() + "\n" for row in rows), encoding="utf-8"
            )
            if 1 in chosen:  # --mbr=10 alone has settings of its own
                where = "_".join(filter(None, ("first_rows", test, options.split)))
                unselected(workdir / f"{where}.json", examples, [g.texts[0] for g in made])


def samples_file(workdir: Path, split: str, samples: int, test: str | None = None) -> Path:
    """Where all samples of the rows are kept, as `evaluate --samples` reads them."""
    return workdir / f"{'_'.join(filter(None, ('samples', test, split, str(samples))))}.examples.jsonl"


def drawn_apart(sizes: list[int], kind: str, sampling: Any) -> list[int]:
    """The numbers of samples to choose among; of settings that draw nothing by chance one alone, and says so.

    Raises:
      SystemExit: then none is left.
    """
    by_chance = kind == "gaussian" or sampling.temperature > 0 or sampling.sampler in ("ancestral", "remdm")
    if by_chance or (kind == "masked" and sampling.score_noise > 0) or max(sizes) == 1:
        return sizes
    said = f"--mbr={','.join(map(str, sizes))}: with these settings all samples of a row are the same"
    mend = "for others set --config.sampling.temperature, or score_noise"
    if 1 not in sizes:
        raise SystemExit(f"{said}: {mend}")
    print(f"{said}, and one is scored; {mend}")
    return [1]


def sentences_a_second(sample: Callable[[Any, int], Any], settings: Any, rows: int) -> float:
    """Of a second round, whose programs are compiled."""
    sample(settings, 1)
    began = time.monotonic()
    sample(settings, 2)
    return round(rows / (time.monotonic() - began), 2)


def unselected(path: Path, examples: Sequence[Any], texts: Sequence[str], count: int = 10) -> None:
    """Keeps the first rows beside what was made of them, as they come."""
    rows = [
        {"source": e.source, "reference": e.targets[0], "text": text}
        for e, text in zip(examples[:count], texts, strict=False)
    ]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
