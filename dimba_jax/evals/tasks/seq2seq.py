"""evaluate --task=seq2seq: what a model, the copy baseline or an earlier run made of pairs, scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimba_jax import commandline, sampling_flags
from dimba_jax.config import ConfigError, DataConfig, RunConfig, SamplingConfig, from_config_dict, to_dict
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.sources import load_split
from dimba_jax.environment import environment, of_checkpoint
from dimba_jax.evals.bertscore import load_bertscore
from dimba_jax.evals.records import Record, make_records, pooled, read_records
from dimba_jax.evals.report import ScoredRow, make_report, report_json, score_rows
from dimba_jax.evals.table import print_table
from dimba_jax.files import write_whole

SPLIT: Split = "test"  # unless another is given


def check(options: flags.FlagValues) -> None:
    """Refuses flags that do not go together.

    Raises:
      absl.flags.Error: the first fault found.
    """
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
        idle = list(sampling_flags.given(options))
        idle += [name for name in ("checkpoint_step", "ensemble", "scan_layers") if options[name].value is not None]
        if idle:
            raise flags.Error(f"--{idle[0]} only has a meaning with --checkpoint")


def run(options: flags.FlagValues, command: Sequence[str]) -> dict[str, Any]:
    """Generates or reads outputs, scores them, prints the table and writes both files; returns the report.

    Raises:
      ConfigError, DataError, FileNotFoundError: what the user can mend, with a message that says how.
    """
    output = commandline.output_file(options.output)
    if options.samples is not None:
        for path in options.samples:
            _check_kept(output, path)
    sizes = _mbr_sizes(options.mbr)
    if options["mbr_gain"].present and (max(sizes) == 1 or options.system == "copy"):
        raise ConfigError(f"--mbr_gain={options.mbr_gain} chooses among several samples: add --mbr=10, or so")
    split: Split = options.split or SPLIT
    bertscore = load_bertscore() if options.bertscore else None  # before hours of sampling
    if options.checkpoint is not None:
        records, metadata = _from_checkpoint(options, split, sizes, command)
    elif options.samples is not None:
        records, metadata = _from_samples(options, sizes, command)
    else:
        records, metadata = _from_copy(options, split, command)
    rows = score_rows(records, sizes, gain=options.mbr_gain, bertscore=bertscore, show_progress=True)
    report = make_report(rows, split, metadata)
    _write(report, rows, output)
    print_table(report)
    return report


def with_data_path(config: RunConfig, path: str | None) -> RunConfig:
    """The config with its data elsewhere; as it is if there is no path."""
    return config if path is None else dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _examples(output: Path) -> Path:
    """The per-example file beside a report."""
    return output.with_name(f"{output.stem}.examples.jsonl")


def _check_kept(output: Path, samples: str) -> None:
    """Scoring again must not replace what it scores, perhaps with fewer rows."""
    if Path(samples).resolve() in (output.resolve(), _examples(output).resolve()):
        raise ConfigError(
            f"--output={output} would replace {samples}, which is read: its examples go to {_examples(output)}; "
            "name another file"
        )


def _mbr_sizes(texts: Sequence[str]) -> list[int]:
    if not texts or not all(text.isdecimal() and int(text) >= 1 for text in texts):
        raise ConfigError(f"--mbr={','.join(texts)}: expected numbers of samples from 1 on, as in 1,3,10")
    return [int(text) for text in texts]


def _from_copy(options: flags.FlagValues, split: Split, command: Sequence[str]) -> tuple[list[Record], dict[str, Any]]:
    config = with_data_path(from_config_dict(options.config), options.data_path)
    examples = load_split(config.data, split)[: options.limit]
    records = make_records(examples, None, _training_texts(config.data, options, split))
    made = {"config": config.name, "settings": to_dict(config), "environment": environment(command, devices=False)}
    return records, made


def _from_samples(
    options: flags.FlagValues, sizes: Sequence[int], command: Sequence[str]
) -> tuple[list[Record], dict[str, Any]]:
    paths: list[str] = options.samples
    if not paths:
        raise ConfigError("--samples names no file: give one or more .examples.jsonl of evaluations")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"--samples={','.join(paths)}: one file is named twice; name each once")
    records = pooled([read_records(path)[: options.limit] for path in paths], paths)
    drawn = len(records[0].samples)
    if 0 < drawn < max(sizes):  # none at all: the file of a copy baseline
        have = "has" if len(paths) == 1 else "together have"
        raise ConfigError(f"--mbr={max(sizes)} needs as many samples a row; {' and '.join(paths)} {have} {drawn}")
    return records, {"samples": paths, "environment": environment(command, devices=False)}


def _from_checkpoint(
    options: flags.FlagValues, split: Split, sizes: Sequence[int], command: Sequence[str]
) -> tuple[list[Record], dict[str, Any]]:
    from dimba_jax.sampling.ensemble import with_others  # here: wrong options and the copy baseline need no JAX
    from dimba_jax.sampling.generate import generate
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema, scan_layers=options.scan_layers)
    config = with_data_path(model.config, options.data_path)
    if config.data.source == "text":
        raise ConfigError(
            f"{options.checkpoint} is a model of text, not of pairs: take --task=likelihood or --task=generation"
        )
    settings = _settings(config, options, sizes)
    if options.ensemble is not None:
        model = with_others(
            model, options.checkpoint, options.ensemble, ema=options.ema, scan_layers=options.scan_layers
        )
    examples: list[Example] = load_split(config.data, split)[: options.limit]
    train_texts = _training_texts(config.data, options, split)
    generations = generate(model, [example.source for example in examples], settings, seed=options.seed, progress=True)
    records = make_records(examples, [generation.texts for generation in generations], train_texts)
    records = [
        dataclasses.replace(record, network_calls=int(generation.network_calls))
        for record, generation in zip(records, generations, strict=True)
    ]
    metadata = of_checkpoint(command, config, options.checkpoint, model.step)
    metadata |= {"seed": options.seed, "sampling": dataclasses.asdict(settings)}
    metadata |= {"ensemble": model.others} if model.others else {}
    return records, metadata


def _settings(config: RunConfig, options: flags.FlagValues, sizes: Sequence[int]) -> SamplingConfig:
    """The sampling settings, with as many samples as the largest choice needs."""
    given = sampling_flags.given(options)
    given.setdefault("num_samples", max(*sizes, config.sampling.num_samples))
    settings = sampling_flags.settings(config, given)
    if settings.num_samples < max(sizes):
        raise ConfigError(f"--num_samples={settings.num_samples} is fewer than --mbr={max(sizes)} chooses among")
    return settings


def _training_texts(data: DataConfig, options: flags.FlagValues, split: Split) -> list[str] | None:
    """Both sides of the pairs a model was trained or chosen on: train and valid, short of the scored split."""
    known: dict[Split, list[Split]] = {"test": ["train", "valid"], "valid": ["train"], "train": []}
    splits = known[split]
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
        _examples(output): "".join(row.to_line() + "\n" for row in rows),
        output: report_json(report),
    }
    write_whole(texts)
