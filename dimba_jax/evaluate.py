"""Scores a model, the copy baseline, or texts generated earlier, on a split of the data.

    python -m dimba_jax.evaluate --checkpoint=W --split=test --mbr=1,3,10 --output=eval.json
    python -m dimba_jax.evaluate --system=copy --config=configs/qqp.py --config.data.path=DIR --output=copy.json
    python -m dimba_jax.evaluate --samples=eval.examples.jsonl --mbr=1,5 --output=again.json

Prints a table, and writes the report as JSON and one line per example beside it (OUTPUT.examples.jsonl).
Files that are there already are replaced once the evaluation has succeeded.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dimba_jax.config import ConfigError, DataConfig, RunConfig, SamplingConfig, from_config_dict, to_dict
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.sources import load_split
from dimba_jax.evals.bertscore import BertScoreError, load_bertscore
from dimba_jax.evals.records import Record, make_records, read_records
from dimba_jax.evals.report import ScoredRow, make_report, report_json, score_rows
from dimba_jax.evals.table import print_table

USER_ERRORS = (
    flags.Error, ConfigError, DataError, BertScoreError,
    FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip
SAMPLING_FLAGS = (
    "sampler", "steps", "guidance", "clamp_from", "temperature",
    "num_samples", "batch_size", "eta", "early_exit", "ema",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. Errors of the user's are one message, without a traceback."""
    try:
        options = _parse(sys.argv if argv is None else argv)
        if options.help:
            print(f"{__doc__}\n{options.get_help()}")
            return 0
        evaluate(options)
    except USER_ERRORS as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags, in a set of their own: the entry modules share names and may live in one process."""
    values = flags.FlagValues()
    text = _definer(flags.DEFINE_string, values)
    integer = _definer(flags.DEFINE_integer, values)
    number = _definer(flags.DEFINE_float, values)
    boolean = _definer(flags.DEFINE_bool, values)
    text("checkpoint", None, "workdir of a trained model")
    integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    flags.DEFINE_enum("system", "model", ["model", "copy"], "copy: score the sources themselves", flag_values=values)
    text("samples", None, "score the per-example file (.examples.jsonl) of an earlier evaluation")
    config_flags.DEFINE_config_file(
        "config", None, "recipe whose data --system=copy reads", flag_values=values, sys_argv=list(argv)
    )
    text("data_path", None, "folder or file of the data, in place of the one in the checkpoint's config")
    flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "rows to score", flag_values=values)
    integer("limit", None, "score only the first so many rows", lower_bound=1)
    boolean("unseen", True, "score the rows that are unseen in training once more (reads the training split)")
    flags.DEFINE_list("mbr", ["1"], "numbers of samples to choose among, as in 1,3,10", flag_values=values)
    text("output", None, "where to write the report (JSON)")
    boolean("bertscore", False, "add BERTScore (needs the package bert-score and its weights)")
    integer("seed", 0, "seed of the samples")
    text("sampler", None, "ddpm, ddim or dpmpp; this and the following default to the checkpoint's config")
    integer("steps", None, "denoising steps")
    number("guidance", None, "classifier-free guidance; 1 is off")
    number("clamp_from", None, "round predictions to embeddings at t below this; 0: never")
    number("temperature", None, "standard deviation of the starting noise")
    number("eta", None, "DDIM's share of ancestral noise")
    integer("num_samples", None, "samples of each row; at least the largest --mbr")
    integer("batch_size", None, "rows of one compiled call")
    integer("early_exit", None, "stop after so many steps without a changed token; 0: never")
    boolean("ema", None, "take the averaged parameters")
    boolean("help", False, "show this help")
    return values


def _definer(define: Any, values: flags.FlagValues):
    return lambda name, default, help, **more: define(name, default, help, flag_values=values, **more)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    options = _define_flags(argv)
    try:
        rest = options(list(argv))[1:]
        getattr(options.config, "keys", None)  # ml_collections reports a missing file on first use only
    except flags.IllegalFlagValueError as error:  # ends in the traceback of a recipe that refused its argument
        raise ConfigError(str(error).strip().splitlines()[-1]) from None
    except OSError:
        name = next(text for text in argv if text.startswith(("--config=", "-config=")))
        raise ConfigError(f"{name}: no such file") from None
    except (AttributeError, KeyError) as error:
        raise ConfigError(f"the recipe has no setting {_reason(error)}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(_reason(error)) from None
    if options.help:
        return options
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
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
        idle = [name for name in (*SAMPLING_FLAGS, "checkpoint_step") if options[name].present]
        if idle:
            raise flags.Error(f"--{idle[0]} only has a meaning with --checkpoint")
    return options


def _reason(error: BaseException) -> str:
    """What ml_collections says, which may be an error inside an error, on one line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())


def evaluate(options: flags.FlagValues) -> dict[str, Any]:
    """Generates or reads outputs, scores them, prints the table and writes both files; returns the report.

    Raises:
      ConfigError, DataError, FileNotFoundError: what the user can mend, with a message that says how.
    """
    output = Path(options.output)
    if output.is_dir():
        raise IsADirectoryError(f"--output={output} is a folder: name a file")
    output.parent.mkdir(parents=True, exist_ok=True)
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
    from dimba_jax.checkpoint import CheckpointError  # here: wrong options and the copy baseline need no JAX
    from dimba_jax.sampling.generate import generate
    from dimba_jax.sampling.load import load

    try:
        model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema)
    except CheckpointError as error:
        raise ConfigError(f"--checkpoint={options.checkpoint}: {error}") from None
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
    """The checkpoint's sampling settings with the given flags in their place, checked."""
    given = {name: options[name].value for name in SAMPLING_FLAGS if options[name].present}
    given.setdefault("num_samples", max(*sizes, config.sampling.num_samples))
    values = to_dict(config)
    settings = from_config_dict(values | {"sampling": values["sampling"] | given}).sampling
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
    """Writes both files beside their places, then moves them there: an old report is whole or replaced."""
    texts = {
        output.with_name(f"{output.stem}.examples.jsonl"): "".join(row.to_line() + "\n" for row in rows),
        output: report_json(report),
    }
    drafts = {path.with_name(f".{path.name}.{os.getpid()}.partial"): path for path in texts}
    try:
        for draft, path in drafts.items():
            draft.write_text(texts[path], encoding="utf-8")
        for draft, path in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
