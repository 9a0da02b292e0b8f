"""Scores a model on pairs (the default task), on the likelihood of text, or on text of its own.

    python -m dimba_jax.evaluate --checkpoint=W --split=test --mbr=1,3,10 --output=eval.json
    python -m dimba_jax.evaluate --system=copy --config=configs/qqp.py --config.data.path=DIR --output=copy.json
    python -m dimba_jax.evaluate --samples=eval.examples.jsonl --mbr=1,5 --output=again.json
    python -m dimba_jax.evaluate --samples=eval.examples.jsonl --mbr=10 --mbr_gain=ibleu --output=copies_less.json
    python -m dimba_jax.evaluate --samples=a.examples.jsonl b.examples.jsonl --mbr=10 --output=both.json
    python -m dimba_jax.evaluate --checkpoint=W --task=likelihood --input=a.txt b.txt [--block_sizes=1,4,16]
    python -m dimba_jax.evaluate --checkpoint=W --task=generation --num_texts=64 --judge=JUDGE --output=generation.json

Prints a table. The report also says what it was made with: checkpoint, settings, seed, versions, devices, commit and
command. seq2seq and generation write the report as JSON and one line per example beside it
(OUTPUT.examples.jsonl); likelihood writes its report if --output is given. Files that are there already are
replaced once the evaluation has succeeded. Of the samples of several files "model" is the first file's first one alone;
its diversity is that of all of them, as it is of one file's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dimba_jax import commandline, sampling_flags
from dimba_jax.sampling.mbr import GAINS

TASKS = ("seq2seq", "likelihood", "generation")

# The flags of one task or two; all others, but for those of sampling, are of every task.
_ONLY = {
    "seq2seq": {"system", "samples", "ensemble", "config", "unseen", "mbr", "mbr_gain", "bertscore", "limit"},
    "likelihood": {"input", "draws", "block_sizes", "training_unigram", "limit"},
    "generation": {"judge", "num_texts", "length", "mauve"},
}
_LIKELIHOOD_SAMPLING = {"batch_size", "ema"}  # a likelihood is not sampled; but it has rows, and parameters


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return commandline.run("evaluate", __doc__, _parse, lambda options: _run(options, argv), argv)


def _run(options: flags.FlagValues, command: Sequence[str]) -> None:
    evaluate(options, command)


def evaluate(options: flags.FlagValues, command: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the task, which prints its table and writes its files; returns the report, which names the command.

    Raises:
      ConfigError, DataError, FileNotFoundError: what the user can mend, with a message that says how.
    """
    return _task(options.task).run(options, command)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.choice("task", "seq2seq", TASKS, "what to score: outputs for pairs, the likelihood of text, or texts drawn")
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.files(
        "ensemble",
        "seq2seq: further workdirs of masked models, as in A B or A,B, whose distributions are averaged with the "
        "checkpoint's; a step is then a network call of each; they are read at their latest steps",
    )
    define.text("data_path", None, "folder or file of the data, in place of the one in the checkpoint's config")
    define.choice("split", None, ["train", "valid", "test"], "rows to score: test for seq2seq, otherwise valid")
    define.integer("limit", None, "seq2seq, likelihood: score only the first so many rows", lower_bound=1)
    define.text("output", None, "where to write the report (JSON)")
    define.seed(0, "seed of the samples, or of the draws")
    define.choice("system", "model", ["model", "copy"], "seq2seq: copy scores the sources themselves")
    define.files(
        "samples",
        "seq2seq: score the per-example file (.examples.jsonl) of an earlier evaluation; of several, --samples=A B or "
        "--samples=A,B, one sample of each in turn",
    )
    define.config("seq2seq: recipe whose data --system=copy reads", argv)
    define.boolean("unseen", True, "seq2seq: score the rows unseen in training once more (reads the training split)")
    define.listing("mbr", ["1"], "seq2seq: numbers of samples to choose among, as in 1,3,10")
    define.choice(
        "mbr_gain", "bleu", GAINS, "seq2seq: what to choose by; ibleu takes samples that copy less of the source"
    )
    define.boolean("bertscore", False, "seq2seq: add BERTScore (needs the package bert-score and its weights)")
    define.files("input", "likelihood: text files, --input=A B or --input=A,B; the split unless given")
    define.integer("draws", 16, "likelihood: Monte-Carlo draws of a bound; an exact value needs one", lower_bound=1)
    define.listing("block_sizes", [], "likelihood: block sizes to score at, as in 1,4,16; 0 is the whole row at once")
    define.boolean("training_unigram", True, "likelihood: the unigram baseline of the training split (reads it)")
    define.text("judge", None, "generation: what perplexity is taken under, the workdir of a model or hf:NAME_OR_PATH")
    define.integer("num_texts", 64, "generation: texts to draw", lower_bound=1)
    define.integer("length", None, "generation: tokens of a text; a whole row unless given", lower_bound=1)
    define.boolean("mauve", False, "generation: add MAUVE (needs the package mauve-text and its weights)")
    define.scan_layers()
    define.sampling()
    options = define.parse(argv)
    if not options.help:
        _refuse_idle(options)
        _task(options.task).check(options)
    return options


def _task(name: str) -> Any:
    return importlib.import_module(f"dimba_jax.evals.tasks.{name}")


def _refuse_idle(options: flags.FlagValues) -> None:
    """A flag of another task would be passed over in silence."""
    given = {name.partition(".")[0] for name in options if options[name].present}
    for task, names in _ONLY.items():
        for name in sorted(given & names - _ONLY[options.task]):
            raise flags.Error(f"--{name} only has a meaning with --task={task}")
    if options.task == "likelihood":
        for name in sampling_flags.given(options):
            if name not in _LIKELIHOOD_SAMPLING:
                raise flags.Error(f"--{name} has no meaning with --task=likelihood: nothing is sampled")


if __name__ == "__main__":
    sys.exit(main())
