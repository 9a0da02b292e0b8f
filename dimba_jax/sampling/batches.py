"""Many rows in batches of one shape, and the key that each draws from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dimba_jax.config import SamplingConfig
from dimba_jax.progress import progress as progress_of


class BatchResult(NamedTuple):
    """Tokens, stages and network calls of a batch."""

    tokens: Int[Array, "b l"]
    trajectory: Int[Array, "k b l"]
    network_calls: Int[Array, ""]


class PromptRows(NamedTuple):
    """What came of one prompt: its samples, the first one's stages, the most calls that one of them took."""

    samples: Int[np.ndarray, "n l"]
    stages: Int[np.ndarray, "k l"]
    network_calls: int


def in_batches(
    run: Callable[[Int[np.ndarray, " b"], PRNGKeyArray], BatchResult],
    prompts: int,
    settings: SamplingConfig,
    *,
    seed: int,
    progress: bool,
) -> list[PromptRows]:
    """Runs `run(prompt numbers, keys)` over `settings.num_samples` rows a prompt, `settings.batch_size` at a time."""
    samples = settings.num_samples
    count = prompts * samples
    keys = row_keys(seed, prompts, samples)
    batch = min(settings.batch_size, count)
    tokens, stages, calls = [], [], np.zeros(count, np.int64)
    with progress_of(count, "sampling", enabled=progress) as shown:
        for start in range(0, count, batch):
            # the last batch is filled up with its last row, so that all have one shape and one compilation
            of_batch = np.minimum(np.arange(start, start + batch), count - 1)
            result = run(of_batch // samples, keys[of_batch])
            real = min(batch, count - start)
            tokens.append(np.asarray(result.tokens)[:real])
            stages.append(np.asarray(result.trajectory)[:, :real])
            calls[start : start + real] = int(result.network_calls)
            shown.update(real)
    rows, trajectory = np.concatenate(tokens), np.concatenate(stages, axis=1)
    return [
        PromptRows(rows[at : at + samples], trajectory[:, at], int(calls[at : at + samples].max()))
        for at in range(0, count, samples)
    ]


def row_keys(seed: int, prompts: int, samples: int) -> PRNGKeyArray:
    """fold_in(fold_in(key(seed), prompt), sample) of each row, the samples of a prompt side by side."""
    prompt, number = jnp.divmod(jnp.arange(prompts * samples, dtype=jnp.int32), samples)
    base = jax.random.key(seed)
    return jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(base, i), k))(prompt, number)
