"""From prompts to texts with a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.config_checks import check
from dimba_jax.data.normalize import normalize
from dimba_jax.data.rows import encode_prompts
from dimba_jax.sampling.batches import BatchResult, PromptRows, in_batches
from dimba_jax.sampling.discrete.sample import check_settings, sample_tokens, total_steps
from dimba_jax.sampling.load import LoadedModel
from dimba_jax.sampling.loop import sample
from dimba_jax.sampling.open_rows import open_rows, readable
from dimba_jax.sampling.steppers import make_stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What a model made of one prompt."""

    prompt: str
    texts: tuple[str, ...]  # num_samples of them; of running text with what was given
    network_calls: int  # for one text; where batches end early the most that any of its batches took
    trajectory: tuple[str, ...] = ()  # the first text's stages, from noise or masks to the text
    continuations: tuple[str, ...] = ()  # of running text without gaps: the texts without what was given
    steps: int = 0  # that the stages are spread over: all that a text may take


_Run = Callable[[Int[np.ndarray, " b"], PRNGKeyArray], BatchResult]


def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    settings: SamplingConfig,
    *,
    seed: int = 0,
    progress: bool = False,
    stages: int = 0,
) -> list[Generation]:
    """Samples `settings.num_samples` texts for each prompt of a model of pairs, `settings.batch_size` rows at a time.

    Sample k of prompt i draws from fold_in(fold_in(key(seed), i), k): the texts do not depend on the batch size or on
    the other prompts, but for rounding, which in half precision differs with the number of rows. A prompt too long for
    the source's positions is cut, with a warning.

    Raises:
      ConfigError: an empty prompt; a model of running text; more steps than the process has, more stages than
        steps; settings that do not fit the model, such as guidance where there was no condition dropout.
    """
    if not prompts:
        return []
    _check(model, settings)
    if model.config.data.source == "text":
        raise ConfigError("this model writes running text and takes no prompts of pairs: use complete()")
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ConfigError(f"prompt {i + 1} of {len(prompts)} is empty: give it some text")
    _warn_of_cuts(model, prompts)
    rows = encode_prompts(model.tokenizer, prompts, model.config.data)
    steps = _steps(model, settings, model.config.data.target_length, stages)
    run = _RUNS[model.config.process.kind](model, rows, settings, stages)
    found = in_batches(run, len(prompts), settings, seed=seed, progress=progress)
    target = slice(model.config.data.source_length, None)
    return [_generation(model, steps, *made, target) for made in zip(prompts, found, strict=True)]


def complete(
    model: LoadedModel,
    texts: Sequence[str],
    settings: SamplingConfig,
    *,
    length: int | None = None,
    seed: int = 0,
    progress: bool = False,
    stages: int = 0,
    gaps: bool = True,
) -> list[Generation]:
    """Goes on with texts, or fills their gaps, with a model of running text (`data.source` "text").

    A text is continued up to `length` tokens, its own counted (None: as many as a training row has); "" is
    unconditional. `[[12]]` in it is a gap of 12 tokens to be filled in, unless `gaps` is False; such a text ends
    where it ends. The longest text decides the length of all rows. Draws are those of `generate`.

    Raises:
      ConfigError: a model of pairs; a text that leaves nothing to write; settings that do not fit the model.
    """
    if not texts:
        return []
    _check(model, settings)
    if model.config.data.source != "text":
        raise ConfigError("this model answers prompts and does not go on with texts: use generate()")
    kind = model.config.process.kind
    blocks = 0 if kind == "autoregressive" else settings.block_size or model.config.process.block_size
    rows = open_rows(model.tokenizer, texts, model.config.data, length=length, multiple=max(blocks, 1), gaps=gaps)
    trained = model.config.data.target_length
    if rows.tokens.shape[1] > trained:
        log.warning("rows of %d tokens: the model was trained on rows of %d", rows.tokens.shape[1], trained)
    steps = _steps(model, settings, rows.tokens.shape[1], stages)
    run = _token_run(model, rows.tokens, rows.editable, rows.visible, settings, stages)
    found = in_batches(run, len(texts), settings, seed=seed, progress=progress)
    made = []
    for i, text in enumerate(texts):
        of = _generation(model, steps, text, found[i], slice(None))
        if rows.is_beginning(i):
            written = found[i].samples[:, rows.given(i) :]
            of = replace(of, continuations=tuple(readable(model.tokenizer, row) for row in written))
        made.append(of)
    return made


def _pair_tokens(model: LoadedModel, rows: dict[str, Any], settings: SamplingConfig, stages: int) -> _Run:
    # target padding is predicted like any token; only the source's is never seen
    return _token_run(model, rows["tokens"], rows["target"], rows["valid"] | rows["target"], settings, stages)


def _pair_embeddings(model: LoadedModel, rows: dict[str, Any], settings: SamplingConfig, stages: int) -> _Run:
    stepper = make_stepper(settings)

    def run(of_batch: Int[np.ndarray, " b"], keys: PRNGKeyArray) -> BatchResult:
        tokens, target, valid = (jnp.asarray(rows[name][of_batch]) for name in ("tokens", "target", "valid"))
        result = sample(
            model.denoiser, model.process, stepper, tokens, target, valid, keys, settings,
            self_conditioning=model.config.model.self_conditioning, stages=stages,
        )  # fmt: skip
        return BatchResult(result.tokens, result.trajectory, result.network_calls)

    return run


_RUNS = {"gaussian": _pair_embeddings, "masked": _pair_tokens, "autoregressive": _pair_tokens}


def _token_run(
    model: LoadedModel,
    tokens: Int[np.ndarray, "b l"],
    editable: Bool[np.ndarray, "b l"],
    visible: Bool[np.ndarray, "b l"],
    settings: SamplingConfig,
    stages: int,
) -> _Run:
    def run(of_batch: Int[np.ndarray, " b"], keys: PRNGKeyArray) -> BatchResult:
        parts = [jnp.asarray(part[of_batch]) for part in (tokens, editable, visible)]
        result = sample_tokens(
            model.denoiser, model.process, parts[0], parts[1], parts[2], keys, settings,
            config=model.config, stages=stages,
        )  # fmt: skip
        return BatchResult(result.tokens, result.trajectory, result.network_calls)

    return run


def _generation(model: LoadedModel, steps: int, prompt: str, made: PromptRows, part: slice) -> Generation:
    """The texts of a prompt's rows, of which this part is to be read."""
    return Generation(
        prompt=prompt,
        texts=tuple(readable(model.tokenizer, row[part]) for row in made.samples),
        network_calls=made.network_calls,
        trajectory=tuple(readable(model.tokenizer, stage[part]) for stage in made.stages),
        steps=steps,
    )


def _steps(model: LoadedModel, settings: SamplingConfig, target: int, stages: int) -> int:
    gaussian = model.config.process.kind == "gaussian"
    steps = settings.steps if gaussian else total_steps(model.config, settings, target)
    if stages and not 2 <= stages <= steps + 1:
        raise ConfigError(f"stages={stages}: with {steps} sampling steps take from 2 to {steps + 1}")
    return steps


def _check(model: LoadedModel, settings: SamplingConfig) -> None:
    process = model.config.process
    if process.kind != "gaussian":
        check_settings(model.config, settings)
        if process.block_size and settings.block_size not in (0, process.block_size):
            log.warning(
                "block_size=%d: the model was trained in blocks of %d, and other ones are new to it",
                settings.block_size, process.block_size,
            )  # fmt: skip
    elif settings.guidance != 1.0 and process.condition_dropout == 0.0:
        raise ConfigError(
            f"guidance={settings.guidance} needs a model trained with process.condition_dropout > 0; "
            "this one was not: use guidance=1"
        )
    if process.kind == "gaussian":
        if settings.steps > process.timesteps:
            raise ConfigError(
                f"steps={settings.steps}: the model's process has {process.timesteps}; take at most as many"
            )
        check(replace(model.config, sampling=settings))


def _warn_of_cuts(model: LoadedModel, prompts: Sequence[str]) -> None:
    data = model.config.data
    room = data.source_length - 1  # the end token takes one
    lengths = [len(model.tokenizer.encode(normalize(prompt, data.normalize))) for prompt in prompts]
    cut = sum(length > room for length in lengths)
    if cut:
        longest = max(lengths)
        log.warning(
            "%d of %d prompts cut to the %d tokens that fit the source; the longest has %d and lost its last %d",
            cut, len(prompts), room, longest, longest - room,
        )  # fmt: skip
