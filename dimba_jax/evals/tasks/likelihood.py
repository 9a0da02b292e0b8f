"""evaluate --task=likelihood: how likely a model finds text files, or a split of its own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from dimba_jax import commandline
from dimba_jax.data.examples import Split
from dimba_jax.environment import of_checkpoint
from dimba_jax.files import write_whole

SPLIT: Split = "valid"  # unless another is given
ROWS = 32  # of one compiled call, unless the batch size is given or training took fewer at a time


def check(options: flags.FlagValues) -> None:
    """Refuses flags that do not go together.

    Raises:
      absl.flags.Error: the first fault found.
    """
    if options.checkpoint is None:
        raise flags.Error("--checkpoint=WORKDIR is missing: the workdir of a training run")
    if options.input is not None:
        if not options.input:
            raise flags.Error("--input names no file: give --input=FILE or --input=A,B")
        for name in ("split", "data_path"):
            if options[name].present:
                raise flags.Error(f"--{name} and --input exclude each other: either a split is scored, or files")
    if options.batch_size is not None and options.batch_size < 1:
        raise flags.Error(f"--batch_size={options.batch_size}: must be at least 1")
    if not all(size.isdecimal() for size in options.block_sizes):
        raise flags.Error(f"--block_sizes={','.join(options.block_sizes)}: expected numbers of positions, as in 1,4,16")


def run(options: flags.FlagValues, command: Sequence[str]) -> dict[str, Any]:
    """Scores the texts, prints the table and writes the report, if there is an output; returns it.

    Raises:
      ConfigError, DataError, FileNotFoundError: what the user can mend, with a message that says how.
    """
    output = None if options.output is None else commandline.output_file(options.output, reads=options.input or ())

    from dimba_jax.evals import likelihood  # here: wrong options need no JAX
    from dimba_jax.evals.report import report_json
    from dimba_jax.evals.tasks.seq2seq import with_data_path
    from dimba_jax.evals.texts import file_text, split_text
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema, scan_layers=options.scan_layers)
    block_sizes = [int(size) for size in options.block_sizes] or [None]
    likelihood.check_model(model, block_sizes)
    config = with_data_path(model.config, options.data_path)
    data, tokenizer = config.data, model.tokenizer
    if options.input:
        texts = [file_text(path, data, tokenizer, options.limit) for path in options.input]
    else:
        texts = [split_text(data, tokenizer, options.split or SPLIT, options.limit)]
    report = likelihood.likelihood_report(
        model,
        texts,
        draws=options.draws,
        seed=options.seed,
        batch_size=options.batch_size or min(ROWS, config.training.batch_size // config.training.accumulate),
        block_sizes=block_sizes,
        training=(
            likelihood.training_frequencies(data, tokenizer) if options.training_unigram else "--notraining_unigram"
        ),
        metadata=of_checkpoint(command, config, options.checkpoint, model.step),
        show_progress=True,
    )
    if output is not None:
        write_whole({output: report_json(report)})
    likelihood.print_likelihood_table(report)
    return report
