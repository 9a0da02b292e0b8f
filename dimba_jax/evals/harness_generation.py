"""What a model writes behind a context, for harnesses: one call for models of text and of pairs."""

from __future__ import annotations

from dimba_jax.config import SamplingConfig
from dimba_jax.sampling.generate import complete, generate
from dimba_jax.sampling.load import LoadedModel

STEP = 32  # rows are a multiple of it, so that few lengths are compiled


def write_on(model: LoadedModel, context: str, settings: SamplingConfig, *, tokens: int, seed: int = 0) -> str:
    """The text that the model puts behind the context, of at most about `tokens` tokens, without the context.

    A model of text goes on with the context, of which it keeps as much of the end as leaves room for the new
    tokens, half a row at least. A model of pairs answers it.

    Raises:
      ConfigError: settings that do not fit the model.
    """
    data = model.config.data
    if data.source_length:
        return generate(model, [context], settings, seed=seed)[0].texts[0]
    ids = model.tokenizer.encode(context)
    room = data.target_length
    keep = min(len(ids), max(room - tokens, room // 2))
    if keep < len(ids):
        context = model.tokenizer.decode(ids[len(ids) - keep :])
        while len(model.tokenizer.encode(context)) > keep:  # a character cut in two may take more tokens than its half
            context = context[1:]
    wanted = keep + min(tokens, room - keep)
    length = min(-(-wanted // STEP) * STEP, room)
    found = complete(model, [context], settings, length=length, seed=seed, gaps=False)[0].continuations[0]
    return model.tokenizer.decode(model.tokenizer.encode(found)[:tokens])
