"""A checkpoint as a model of EleutherAI's lm-evaluation-harness (package `lm-eval`, extra `harness`).

Importing this module needs the package; `dimba_jax.evals.harness` is the command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

from dimba_jax.config import SamplingConfig
from dimba_jax.evals.conditional import Conditional
from dimba_jax.progress import progress
from dimba_jax.sampling.load import LoadedModel, load

DRAWS = 128  # of a bound, as LLaDA takes
NEW_TOKENS = 256  # at most, where a task does not say


@register_model("dimba_jax")
class HarnessModel(LM):
    """Log-likelihoods are exact for an autoregressive model, and means of `draws` draws of a bound for a masked one.

    Made by the harness from `--model_args checkpoint=WORKDIR,draws=64` once this module is imported, or here
    from a loaded model. `standard_errors` holds those of all continuations scored so far (of one draw there is none).

    Args:
      checkpoint: a workdir; or give `model`.
      settings: of `generate_until`; the checkpoint's own unless given.

    Raises:
      ConfigError: a Gaussian model.
      FileNotFoundError: no checkpoint there.
    """

    def __init__(
        self,
        checkpoint: str = "",
        *,
        model: LoadedModel | None = None,
        settings: SamplingConfig | None = None,
        draws: int = DRAWS,
        seed: int = 0,
        batch_size: int | str = 32,
        show_progress: bool = True,
        **_: Any,  # the harness hands over a torch device and the like
    ):
        super().__init__()
        self.model = load(checkpoint) if model is None else model
        self.checkpoint = checkpoint
        self.settings = dataclasses.replace(settings or self.model.config.sampling, num_samples=1)
        self.seed, self.show_progress = int(seed), show_progress
        size = 32 if batch_size == "auto" else int(batch_size)
        self.conditional = Conditional(self.model, draws=int(draws), seed=self.seed, batch_size=size)
        self.standard_errors: list[float] = []

    @property
    def tokenizer_name(self) -> str:
        """By which the harness keeps its cached requests apart."""
        return f"dimba_jax.{type(self.model.tokenizer).__name__}.{self.model.tokenizer.vocab_size}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        exact = self.conditional.exact
        errors = self.standard_errors
        return {
            "checkpoint": self.checkpoint,
            "checkpoint_step": int(self.model.step),
            "process": self.model.config.process.kind,
            "loglikelihood": "exact" if exact else "lower bound",
            "draws": 1 if exact else self.conditional.draws,
            "draws_seed": self.seed,
            "mean_standard_error_nats": sum(errors) / len(errors) if errors else None,
            "sampling": dataclasses.asdict(self.settings),
        }

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding gives it) of each request."""
        out = []
        with self._progress(len(requests), "loglikelihood", disable_tqdm) as shown:
            for request in requests:
                found = self.conditional.score(*request.args)
                if found.standard_error is not None:
                    self.standard_errors.append(found.standard_error)
                out.append((found.logp, found.greedy))
                self.cache_hook.add_partial("loglikelihood", request.args, out[-1])
                shown.update()
        return out

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text in nats, its rows one after another, each by itself."""
        out = []
        with self._progress(len(requests), "loglikelihood_rolling", disable_tqdm) as shown:
            for request in requests:
                out.append(self.conditional.rolling(request.args[0]))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, out[-1])
                shown.update()
        return out

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of the task's stops.

        Greedy (temperature 0) unless the task says `do_sample`. A context that leaves too little of a row loses
        its beginning.
        """
        from dimba_jax.evals.harness_generation import write_on  # compiled only where a task asks for it

        out = []
        with self._progress(len(requests), "generate_until", disable_tqdm) as shown:
            for request in requests:
                arguments: Any
                context, arguments = request.args  # pyright: ignore[reportAssignmentType]
                settings, stops, tokens = self._generation(dict(arguments))
                text = write_on(self.model, context, settings, tokens=tokens, seed=self.seed)
                for stop in stops:
                    text = text.partition(stop)[0]
                out.append(text)
                self.cache_hook.add_partial("generate_until", request.args, text)
                shown.update()
        return out

    def _generation(self, arguments: dict[str, Any]) -> tuple[SamplingConfig, list[str], int]:
        stops = arguments.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        sampled = bool(arguments.get("do_sample")) and float(arguments.get("temperature", 1.0)) > 0.0
        changes: dict[str, Any] = {"temperature": float(arguments.get("temperature", 1.0)) if sampled else 0.0}
        if sampled:
            changes |= {name: kind(arguments[name]) for name, kind in _ASKED.items() if name in arguments}
        tokens = int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or NEW_TOKENS)
        return dataclasses.replace(self.settings, **changes), [stop for stop in stops if stop], tokens

    def _progress(self, total: int, name: str, disable: bool):
        return progress(total, name, enabled=self.show_progress and not disable)


_ASKED = {"top_k": int, "top_p": float}  # what a task may say of its sampling
