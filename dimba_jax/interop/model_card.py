"""The card of an exported model: what it is, how it was trained, how it is used, what it scored."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dimba_jax.config import RunConfig

PROCESSES = {
    "gaussian": "continuous diffusion over token embeddings",
    "masked": "masked (absorbing) diffusion",
    "autoregressive": "next-token prediction",
}
MIXERS = {"attention": "attention", "mamba": "Mamba", "mamba2": "Mamba-2"}


def model_card(
    config: RunConfig,
    *,
    name: str,
    parameters: int,
    step: int,
    averaged: bool,
    tables: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
      name: of the folder, as the commands in the card give it.
      parameters: of the network.
      tables: what evaluations printed (`evals.table.format_table`).
      license: as the front matter names it; None: nothing is said but that the data's terms are to be looked up.
    """  # fmt: skip
    pairs = config.data.source != "text"
    front = [
        "---",
        "library_name: dimba_jax",
        f"pipeline_tag: {'text2text-generation' if pairs else 'text-generation'}",
    ]
    front += [f"license: {license}"] * (license is not None)
    kind = "autoregressive" if config.process.kind == "autoregressive" else "diffusion"
    front += ["tags:", *(f"- {tag}" for tag in (kind, "jax", *dict.fromkeys(config.model.pattern))), "---"]
    prompt = '"How do I learn to swim?"' if pairs else '"Once upon a time"'
    use = [
        f"    python -m dimba_jax.sample --checkpoint={shlex.quote(name)} --prompt={prompt}",
        "",
        "or from Python:",
        "",
        "    import dimba_jax",
        f'    model = dimba_jax.load("{name}")',
        f"    dimba_jax.{'generate' if pairs else 'complete'}(model, [{prompt}], model.config.sampling)",
    ]
    scores = ["## Scores", "", *_fenced(tables)] if tables else []
    terms = (
        "The weights carry the terms of the text they were trained on, which may forbid some uses: look them up\n"
        "before passing them on. They repeat what that text says, faults and prejudices included."
    )
    parts = [
        *front, "", f"# {config.name}", "", _what(config, parameters), "", "## Use", "", *use, "",
        "## Training", "", *_training(config, step, averaged), "", *scores, "## Limits", "", terms,
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _what(config: RunConfig, parameters: int) -> str:
    m, d = config.model, config.data
    layout = " and ".join(MIXERS[mixer] for mixer in dict.fromkeys(m.pattern))
    direction = "causal" if m.direction == "causal" else f"bidirectional ({m.direction})"
    if set(m.pattern) == {"attention"} and m.direction != "causal":
        direction = "bidirectional"
    task = (
        f"It answers prompts of up to {d.source_length} tokens with texts of up to {d.target_length}."
        if d.source != "text"
        else f"It writes running text; rows had {d.target_length} tokens in training."
    )
    return (
        f"{PROCESSES[config.process.kind].capitalize()} on a {direction} {layout} network: {m.layers} layers of width "
        f"{m.d_model}, {parameters / 1e6:.1f} million parameters. {task}"
    )


def _training(config: RunConfig, step: int, averaged: bool) -> list[str]:
    t, o, p = config.training, config.optimizer, config.process
    rows: Mapping[str, Any] = {
        "steps": f"{step:,} of {t.batch_size:,} rows",
        "data": f"source {config.data.source!r}, normalised by {config.data.normalize!r}",
        "started from": "pretrained weights, whose terms apply too" if t.init_from else "random weights",
        "learned from": "its data, and trained models, whose terms apply too" if t.teachers else "its data",
        "tokens": f"{config.tokenizer.kind}, at most {config.tokenizer.vocab_size:,}",
        "noise": "none" if p.kind == "autoregressive" else f"{p.schedule} schedule",
        "optimizer": f"AdamW, {o.learning_rate:g} ({o.schedule}), weight decay {o.weight_decay:g}",
        "parameters": f"averaged with decay {o.ema_decay:g}" if averaged else "as trained",
        "seed": config.seed,
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _fenced(tables: Sequence[str]) -> list[str]:
    return [line for table in tables for line in ("```", *table.strip("\n").split("\n"), "```", "")]
