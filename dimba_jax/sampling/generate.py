"""From prompts to texts with a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.data.normalize import normalize
from dimba_jax.data.rows import encode_prompts
from dimba_jax.progress import progress as progress_of
from dimba_jax.sampling.load import LoadedModel
from dimba_jax.sampling.loop import sample
from dimba_jax.sampling.steppers import make_stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What a model made of one prompt."""

    prompt: str
    texts: tuple[str, ...]  # num_samples of them
    network_calls: int  # for one text; under early exit the most that any of its batches took
    trajectory: tuple[str, ...] = ()  # the first text's stages, from noise to the text


def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    settings: SamplingConfig,
    *,
    seed: int = 0,
    progress: bool = False,
    stages: int = 0,
) -> list[Generation]:
    """Samples `settings.num_samples` texts for each prompt, `settings.batch_size` rows at a time.

    Sample k of prompt i draws from fold_in(fold_in(key(seed), i), k): the texts do not depend on the
    batch size or on the other prompts. A prompt too long for the source's positions is cut, with a warning.

    Raises:
      ConfigError: an empty prompt; more steps than the process has; guidance with a model that was
        trained without condition dropout.
    """
    if not prompts:
        return []
    _check(model, prompts, settings)
    _warn_of_cuts(model, prompts)
    rows = encode_prompts(model.tokenizer, prompts, model.config.data)
    samples = settings.num_samples
    keys = _row_keys(seed, len(prompts), samples)
    count = len(prompts) * samples
    batch = min(settings.batch_size, count)
    stepper = make_stepper(settings)
    found: list[Int[np.ndarray, "b l"]] = []
    stage_tokens: list[Int[np.ndarray, "k b l"]] = []
    calls = np.zeros(count, np.int64)
    with progress_of(count, "sampling", enabled=progress) as shown:
        for start in range(0, count, batch):
            # the last batch is filled up with its last row, so that all have one shape and one compilation
            of_batch = np.minimum(np.arange(start, start + batch), count - 1)
            prompt = of_batch // samples
            result = sample(
                model.denoiser, model.process, stepper,
                jnp.asarray(rows["tokens"][prompt]), jnp.asarray(rows["target"][prompt]),
                jnp.asarray(rows["valid"][prompt]), keys[of_batch], settings,
                self_conditioning=model.config.model.self_conditioning, stages=stages,
            )  # fmt: skip
            real = min(batch, count - start)
            found.append(np.asarray(result.tokens)[:real])
            stage_tokens.append(np.asarray(result.trajectory)[:, :real])
            calls[start : start + real] = int(result.network_calls)
            shown.update(real)
    tokens = np.concatenate(found)
    trajectory = np.concatenate(stage_tokens, axis=1)
    return [
        Generation(
            prompt=text,
            texts=tuple(_decode(model, tokens[i * samples + k]) for k in range(samples)),
            network_calls=int(calls[i * samples : (i + 1) * samples].max()),
            trajectory=tuple(_decode(model, stage) for stage in trajectory[:, i * samples]),
        )
        for i, text in enumerate(prompts)
    ]


def _row_keys(seed: int, prompts: int, samples: int) -> PRNGKeyArray:
    """Keys of the rows, the samples of a prompt side by side."""
    prompt, number = jnp.divmod(jnp.arange(prompts * samples, dtype=jnp.int32), samples)
    base = jax.random.key(seed)
    return jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(base, i), k))(prompt, number)


def _decode(model: LoadedModel, row: Int[np.ndarray, " l"]) -> str:
    return model.tokenizer.decode([int(token) for token in row[model.config.data.source_length :]])


def _check(model: LoadedModel, prompts: Sequence[str], settings: SamplingConfig) -> None:
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ConfigError(f"prompt {i + 1} of {len(prompts)} is empty: give it some text")
    process = model.config.process
    if settings.guidance != 1.0 and process.condition_dropout == 0.0:
        raise ConfigError(
            f"guidance={settings.guidance} needs a model trained with process.condition_dropout > 0; "
            "this one was not: use guidance=1"
        )
    if settings.steps > process.timesteps:
        raise ConfigError(f"steps={settings.steps}: the model's process has {process.timesteps}; take at most as many")


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
