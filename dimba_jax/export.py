"""Exports a trained model as a folder to hand on: safetensors, config.json, the tokenizer and a model card.

    python -m dimba_jax.export --checkpoint=W --output=FOLDER [--dtype=bfloat16] [--reports=eval.json] [--license=ID]
    python -m dimba_jax.sample --checkpoint=FOLDER --prompt="How do I kill rats?"

What reads a workdir's checkpoint reads such a folder, wherever it lies; it needs nothing of the run. It holds the
parameters of one step (the averaged ones, or with --noema those as trained), no state of the optimizer, and no path of
this machine. Nothing in it is executed when it is read. The card has the tables of the reports that are given.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dimba_jax import commandline
from dimba_jax.config import ConfigError
from dimba_jax.data.examples import parse_json, read_text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run("export", __doc__, _parse, _run, argv)


def _run(options: flags.FlagValues) -> None:
    folder = Path(options.output).absolute()
    if options.license is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", options.license):
        raise ConfigError(f"--license={options.license!r}: give an identifier, as apache-2.0 or other")
    tables = [_table(Path(report)) for report in options.reports]

    import jax  # here: --help and wrong options need no JAX
    from flax import nnx

    from dimba_jax.interop.exported import Exported, check_place, write_exported
    from dimba_jax.interop.model_card import model_card
    from dimba_jax.sampling.load import load

    check_place(folder)
    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema)
    averaged = model.config.sampling.ema if options.ema is None else options.ema
    params = nnx.to_pure_dict(nnx.state(model.denoiser, nnx.Param))
    card = model_card(
        model.config, name=folder.name, step=model.step, averaged=averaged, tables=tables, license=options.license,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )  # fmt: skip
    exported = Exported(model.config, model.tokenizer, params, model.process, model.step, averaged)
    write_exported(exported, folder, card=card, half=options.dtype == "bfloat16")
    files = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{options.output}: step {model.step}, {size:,.1f} MB in {', '.join(path.name for path in files)}")


def _table(path: Path) -> str:
    """The table of an evaluation's report."""
    from dimba_jax.evals.table import format_table

    report = parse_json(read_text(path), str(path))
    try:
        made = report.get("metadata") or {}
        if made.get("ensemble") or len(made.get("samples") or ()) > 1:
            raise ConfigError(f"{path} scores several models together, and the card is of one: leave it out")
        return format_table(report)
    except (KeyError, TypeError, AttributeError) as error:
        what = json.dumps(str(error))
        raise ConfigError(f"{path} is no report of evaluate --task=seq2seq ({type(error).__name__} {what})") from None


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.text("output", None, "the folder to write, which is not there yet or empty")
    define.boolean("ema", None, "take the averaged parameters; as the checkpoint's config has it unless given")
    define.choice("dtype", "float32", ["float32", "bfloat16"], "of the matmuls' kernels; all else stays float32")
    define.listing("reports", [], "reports of evaluate (JSON), whose tables go into the card")
    define.text("license", None, "identifier of a licence for the card's front matter")
    options = define.parse(argv)
    if options.help:
        return options
    for name in ("checkpoint", "output"):
        if options[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.export --checkpoint=WORKDIR --output=FOLDER")
    return options


if __name__ == "__main__":
    sys.exit(main())
