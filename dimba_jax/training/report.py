"""What a run shows of itself between steps: log lines, validation loss, sample texts."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from dimba_jax import parallel
from dimba_jax.data.pipeline import valid_batches
from dimba_jax.data.sources import load_split
from dimba_jax.diffusion.masked import Masked
from dimba_jax.progress import Progress
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import from_parts
from dimba_jax.training.feed import model_inputs
from dimba_jax.training.figures import Totals, flops_per_row, mean_figures, peak_flops, summary
from dimba_jax.training.metrics import Metrics
from dimba_jax.training.optimizer import learning_rate
from dimba_jax.training.setup import Run
from dimba_jax.training.step import make_valid_step
from dimba_jax.training.time_range import search_time_range
from dimba_jax.training.watch import TrainingDiverged, Watch

SAMPLE_PROMPTS = 4
VALID_KEY = 1  # seeds the draws of every validation, so that two of them differ by their parameters alone


class Clock:
    """Time spent in steps since the last log line; what happens between `stop` and `go` does not count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.steps, self.seconds, self._since = 0, 0.0, time.monotonic()

    def stop(self) -> None:
        self.seconds += time.monotonic() - self._since

    def go(self) -> None:
        self._since = time.monotonic()


class Reporter:
    """Reads a run's figures when they are due and writes them to the metrics and the progress bar."""

    def __init__(self, run: Run, metrics: Metrics, watch: Watch, bar: Progress):
        self._run, self._metrics, self._watch, self._bar = run, metrics, watch, bar
        self._rate = learning_rate(run.config.optimizer, run.config.training.steps)
        self._valid_step = make_valid_step(run.graphdef, run.config)
        self._peak = peak_flops(jax.devices()[0])
        forwards = run.config.process.self_condition_prob if run.config.model.self_conditioning else 0.0
        model, data, process = run.config.model, run.config.data, run.config.process
        positions = data.target_length if model.context == "none" else data.source_length + data.target_length
        self._flops = flops_per_row(
            run.state.params,
            source=data.source_length,
            backbone=positions + data.target_length * bool(process.block_size),  # the clean row, the noisy target
            head=positions if process.kind == "gaussian" else data.target_length,
            tied=embeddings(run.state.params).size if model.head == "tied" else 0,
            forwards=forwards,
        )
        self.clock = Clock()

    def log(self, step: int) -> None:
        """Writes the means since the last log line and starts new sums. Waits for the device."""
        run = self._run
        self._watch.catch_up()
        figures = summary(run.state.totals)
        process = run.config.process
        if process.kind == "autoregressive" or process.block_size:  # a row has no time there, or many
            figures = {name: value for name, value in figures.items() if "_by_t/" not in name}
        self.clock.stop()
        figures["embedding_rms"] = float(jnp.sqrt(jnp.mean(jnp.square(embeddings(run.state.params)))))
        skipped = int(run.state.skipped)
        figures["skipped_steps"] = skipped
        figures["learning_rate"] = float(np.asarray(self._rate(step - skipped - 1)))
        speed = self._speed()
        self._metrics.scalars(step, figures | speed)
        shown = {"loss": figures["loss"]} | ({"skipped_steps": skipped} if skipped else {})
        self._bar.update(0, **shown, **({"tokens_per_s": speed["tokens_per_s"]} if speed else {}))
        # from the host: of an array on one device, JAX makes one that is broken where each process has one device
        zero = jax.tree.map(np.asarray, Totals.zero(run.state.process.terms))
        totals = jax.device_put(zero, parallel.replicated(run.mesh))
        run.state = dataclasses.replace(run.state, totals=totals)
        self.clock.reset()

    def save(self, step: int, *, last: bool) -> None:
        """Writes a checkpoint. Waits for the device.

        Where a step was skipped, and it is not the last one, nothing is written: if steps go on being skipped, the
        checkpoints from before are worth more than those of the parameters that led there.

        Raises:
          TrainingDiverged: the parameters are not finite; they are not written.
        """
        self._watch.catch_up()
        if self._watch.skipping and not last:
            return
        self.clock.stop()
        state = self._run.state
        if not _all_finite((state.params, state.ema)):
            raise TrainingDiverged(
                f"step {step}: a parameter is not finite after a gradient that was, so training stopped and nothing "
                "was saved: try a lower config.optimizer.learning_rate"
            )
        self._run.save(step)
        self.clock.go()

    def validate(self, step: int) -> None:
        """The loss of the averaged parameters on the first rows of the validation split, draws fixed."""
        run = self._run
        self._watch.catch_up()
        self.clock.stop()
        training = run.config.training
        batches = valid_batches(
            run.valid_rows, training.batch_size, training.valid_batches, jax.process_index(), jax.process_count()
        )
        placed = [parallel.shard_batch(run.mesh, model_inputs(batch)) for batch in batches]
        keys = [jax.random.fold_in(jax.random.key(VALID_KEY), number) for number in range(len(placed))]
        found = [
            self._valid_step(run.state.ema, run.state.process, batch, key)
            for batch, key in zip(placed, keys, strict=True)
        ]
        figures = mean_figures(found)
        self._metrics.scalars(step, {f"valid_{name}": value for name, value in figures.items()})
        if run.config.process.search_time_range:
            process = run.state.process
            assert isinstance(process, Masked)  # config_checks
            process, searched = search_time_range(run.graphdef, run.state.ema, process, placed, run.config)
            run.state = dataclasses.replace(run.state, process=jax.device_put(process, parallel.replicated(run.mesh)))
            self._metrics.scalars(step, searched)
        self._bar.update(0, valid_loss=figures["loss"])
        self.clock.go()

    def sample(self, step: int) -> None:
        """Texts of the averaged parameters: for the first prompts of the validation split, or from nothing."""
        run = self._run
        self.clock.stop()
        text = run.config.data.source == "text"
        prompts = [""] * SAMPLE_PROMPTS if text else self._prompts()
        params, process = parallel.on_first_device(run.mesh, (run.state.ema, run.state.process))
        if jax.process_index() == 0:
            model = from_parts(run.config, run.tokenizer, params, process, step)
            settings = dataclasses.replace(run.config.sampling, num_samples=1)
            from dimba_jax.sampling.generate import complete

            write = complete if text else generate
            with parallel.unsplit_kernels():
                pairs = [(made.prompt, made.texts[0]) for made in write(model, prompts, settings)]
            self._metrics.texts(step, pairs)
            self._bar.write("\n".join([f"samples at step {step:,}:", *(f"  {a}  ->  {b}" for a, b in pairs)]))
        self.clock.go()

    def _prompts(self) -> list[str]:
        return [example.source for example in load_split(self._run.config.data, "valid")[:SAMPLE_PROMPTS]]

    def _speed(self) -> dict[str, float]:
        """Positions (padding included: the network runs over it) and pairs a second; nothing before the first step."""
        clock, config = self.clock, self._run.config
        if clock.steps == 0 or clock.seconds <= 0.0:
            return {}
        pairs = clock.steps * config.training.batch_size / clock.seconds
        tokens = pairs * (config.data.source_length + config.data.target_length)
        speed = {"tokens_per_s": tokens, "pairs_per_s": pairs}
        if self._peak is not None:
            speed["flops_utilisation"] = pairs * self._flops / (self._peak * self._run.mesh.size)
        return speed


def embeddings(params: PyTree) -> Array:
    """The table as trained, before any rescaling of its rows."""
    return params["tokens"]["embedding"] if "tokens" in params else params["table"]


@jax.jit
def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
