"""evaluate --task=generation: texts drawn from a language model, beside real ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from dimba_jax import commandline, sampling_flags
from dimba_jax.config import ConfigError
from dimba_jax.data.examples import Split
from dimba_jax.environment import of_checkpoint
from dimba_jax.files import write_whole

SPLIT: Split = "valid"  # of the real texts, unless another is given


def check(options: flags.FlagValues) -> None:
    """Refuses flags that do not go together.

    Raises:
      absl.flags.Error: the first fault found.
    """
    if options.checkpoint is None:
        raise flags.Error("--checkpoint=WORKDIR is missing: the workdir of a training run")
    if options.output is None:
        raise flags.Error("--output=FILE is missing: the JSON file to write")
    if options.num_samples is not None:
        raise flags.Error("--num_samples is of prompts, and texts are drawn without one: give --num_texts")


def run(options: flags.FlagValues, command: Sequence[str]) -> dict[str, Any]:
    """Draws texts, scores them, prints the table and writes both files; returns the report.

    Raises:
      ConfigError, DataError, JudgeError, MauveError, FileNotFoundError: what the user can mend.
    """
    output = commandline.output_file(options.output)

    from dimba_jax.evals import generation  # here: wrong options need no JAX
    from dimba_jax.evals.judge import load_judge
    from dimba_jax.evals.mauve import load_mauve
    from dimba_jax.evals.report import report_json
    from dimba_jax.evals.tasks.seq2seq import with_data_path
    from dimba_jax.sampling.generate import complete
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema, scan_layers=options.scan_layers)
    config = with_data_path(model.config, options.data_path)
    if config.data.source_length:
        raise ConfigError(
            f"{options.checkpoint} is a model of pairs (data.source_length={config.data.source_length}) and writes "
            "nothing without a prompt: take --task=seq2seq"
        )
    split = options.split or SPLIT
    settings = sampling_flags.settings(model.config, sampling_flags.given(options) | {"num_samples": 1})
    # before the sampling, which may take hours
    judge = None if options.judge is None else load_judge(options.judge)
    mauve = load_mauve() if options.mauve else None
    references = generation.reference_texts(config, model.tokenizer, split, options.num_texts)
    drawn = complete(
        model, [""] * options.num_texts, settings, length=options.length, seed=options.seed, progress=True
    )  # fmt: skip
    texts = [text for one in drawn for text in one.texts]
    report = generation.generation_report(
        texts,
        references,
        judge=judge,
        tokenizer=model.tokenizer,
        mauve=mauve,
        split=split,
        metadata=of_checkpoint(command, config, options.checkpoint, model.step) | {
            "seed": options.seed, "length": options.length, "sampling": dataclasses.asdict(settings),
            "network_calls": max(int(one.network_calls) for one in drawn),
        },
        show_progress=True,
    )  # fmt: skip
    lines = [
        json.dumps({"sample": i, "text": one.texts[0], "network_calls": int(one.network_calls)}, ensure_ascii=False)
        for i, one in enumerate(drawn)
    ]
    examples = output.with_name(f"{output.stem}.examples.jsonl")
    write_whole({examples: "".join(line + "\n" for line in lines), output: report_json(report)})
    generation.print_generation_table(report)
    return report
