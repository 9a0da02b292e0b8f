"""Scores a model, the copy baseline, or texts generated earlier, on a split of the data.

    python -m dimba_jax.evaluate --checkpoint=W --split=test --mbr=1,3,10 --output=eval.json
    python -m dimba_jax.evaluate --system=copy --config=configs/qqp.py --config.data.path=DIR --output=copy.json
    python -m dimba_jax.evaluate --samples=eval.examples.jsonl --mbr=1,5 --output=again.json

Prints a table, and writes the report as JSON and one line per example beside it (OUTPUT.examples.jsonl).
Files that are there already are replaced once the evaluation has succeeded.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimba_jax import commandline
from dimba_jax.config import ConfigError, DataConfig, RunConfig, SamplingConfig, from_config_dict
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.sources import load_split
from dimba_jax.evals.bertscore import load_bertscore
from dimba_jax.evals.records import Record, make_records, read_records
from dimba_jax.evals.report import ScoredRow, make_report, report_json, score_rows
from dimba_jax.evals.table import print_table
from dimba_jax.files import write_whole


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run("evaluate", __doc__, _parse, _run, argv)


def _run(options: flags.FlagValues) -> None:
    evaluate(options)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.choice("system", "model", ["model", "copy"], "copy: score the sources themselves")
    define.text("samples", None, "score the per-example file (.examples.jsonl) of an earlier evaluation")
    define.config("recipe whose data --system=copy reads", argv)
    define.text("data_path", None, "folder or file of the data, in place of the one in the checkpoint's config")
    define.choice("split", "test", ["train", "valid", "test"], "rows to score")
    define.integer("limit", None, "score only the first so many rows", lower_bound=1)
    define.boolean("unseen", True, "score the rows that are unseen in training once more (reads the training split)")
    define.listing("mbr", ["1"], "numbers of samples to choose among, as in 1,3,10")
    define.text("output", None, "where to write the report (JSON)")
    define.boolean("bertscore", False, "add BERTScore (needs the package bert-score and its weights)")
    define.integer("seed", 0, "seed of the samples")
    define.sampling()
    options = define.parse(argv)
    if options.help:
        return options
    ways = {
        "--checkpoint=WORKDIR": options.checkpoint is not None,
        "--system=copy": options.system == "copy",
        "--samples=FILE": options.samples is not None,
    }
    if sum(ways.values()) != 1:
        given = " and ".join(way for way, used in ways.items() if used) or "none"
        raise flags.Error(f"give exactly one of {', '.join(ways)}; got {given}")
    if options.output is None:
        raise flags.Error("--output=FILE is missing: the JSON file to write")
    if options.system == "copy" and options.config is None:
        raise flags.Error("--system=copy needs --config=RECIPE, which says where the data is")
    if options.checkpoint is None:
        idle = list(commandline.given_sampling(options))
        idle += ["checkpoint_step"] * (options.checkpoint_step is not None)
        if idle:
            raise flags.Error(f"--{idle[0]} only has a meaning with --checkpoint")
    return options


def evaluate(options: flags.FlagValues) -> dict[str, Any]:
    """Generates or reads outputs, scores them, prints the table and writes both files; returns the report.

    Raises:
      ConfigError, DataError, FileNotFoundError: what the user can mend, with a message that says how.
    """
    output = commandline.output_file(options.output)
    sizes = _mbr_sizes(options.mbr)
    bertscore = load_bertscore() if options.bertscore else None  # before hours of sampling
    if options.checkpoint is not None:
        records, metadata = _from_checkpoint(options, sizes)
    elif options.samples is not None:
        records, metadata = _from_samples(options, sizes)
    else:
        records, metadata = _from_copy(options)
    rows = score_rows(records, sizes, bertscore=bertscore, show_progress=True)
    report = make_report(rows, options.split, metadata)
    _write(report, rows, output)
    print_table(report)
    return report


def _mbr_sizes(texts: Sequence[str]) -> list[int]:
    if not texts or not all(text.isdecimal() and int(text) >= 1 for text in texts):
        raise ConfigError(f"--mbr={','.join(texts)}: expected numbers of samples from 1 on, as in 1,3,10")
    return [int(text) for text in texts]


def _from_copy(options: flags.FlagValues) -> tuple[list[Record], dict[str, Any]]:
    config = _with_data_path(from_config_dict(options.config), options.data_path)
    examples = _examples(config.data, options)
    return make_records(examples, None, _training_texts(config.data, options)), {"config": config.name}


def _from_samples(options: flags.FlagValues, sizes: Sequence[int]) -> tuple[list[Record], dict[str, Any]]:
    records = read_records(options.samples)[: options.limit]
    drawn = len(records[0].samples)
    if 0 < drawn < max(sizes):  # none at all: the file of a copy baseline
        raise ConfigError(f"--mbr={max(sizes)} needs as many samples a row; {options.samples} has {drawn}")
    return records, {"samples": options.samples}


def _from_checkpoint(options: flags.FlagValues, sizes: Sequence[int]) -> tuple[list[Record], dict[str, Any]]:
    from dimba_jax.sampling.generate import generate  # here: wrong options and the copy baseline need no JAX
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema)
    config = _with_data_path(model.config, options.data_path)
    settings = _settings(config, options, sizes)
    examples = _examples(config.data, options)
    train_texts = _training_texts(config.data, options)
    generations = generate(model, [example.source for example in examples], settings, seed=options.seed, progress=True)
    records = make_records(examples, [generation.texts for generation in generations], train_texts)
    records = [
        dataclasses.replace(record, network_calls=int(generation.network_calls))
        for record, generation in zip(records, generations, strict=True)
    ]
    metadata = {
        "config": config.name, "checkpoint": str(options.checkpoint), "step": int(model.step),
        "seed": options.seed, "sampling": dataclasses.asdict(settings),
    }  # fmt: skip
    return records, metadata


def _with_data_path(config: RunConfig, path: str | None) -> RunConfig:
    return config if path is None else dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _settings(config: RunConfig, options: flags.FlagValues, sizes: Sequence[int]) -> SamplingConfig:
    """The sampling settings, with as many samples as the largest choice needs."""
    given = commandline.given_sampling(options)
    given.setdefault("num_samples", max(*sizes, config.sampling.num_samples))
    settings = commandline.sampling_settings(config, given)
    if settings.num_samples < max(sizes):
        raise ConfigError(f"--num_samples={settings.num_samples} is fewer than --mbr={max(sizes)} chooses among")
    return settings


def _examples(data: DataConfig, options: flags.FlagValues) -> list[Example]:
    return load_split(data, options.split)[: options.limit]


def _training_texts(data: DataConfig, options: flags.FlagValues) -> list[str] | None:
    """Both sides of the pairs a model was trained or chosen on: train and valid, short of the scored split."""
    known: dict[Split, list[Split]] = {"test": ["train", "valid"], "valid": ["train"], "train": []}
    splits = known[options.split]
    if not options.unseen or not splits:
        return None
    try:
        examples = [example for split in splits for example in load_split(data, split)]
    except DataError as error:
        raise DataError(f"{error} (needed to tell the unseen rows; --nounseen leaves them out)") from None
    return [text for example in examples for text in (example.source, *example.targets)]


def _write(report: dict[str, Any], rows: Sequence[ScoredRow], output: Path) -> None:
    """Writes the report and, beside it, a line for each example."""
    texts = {
        output.with_name(f"{output.stem}.examples.jsonl"): "".join(row.to_line() + "\n" for row in rows),
        output: report_json(report),
    }
    write_whole(texts)


if __name__ == "__main__":
    sys.exit(main())
