"""From a config to everything a run needs: tokenizer, data, network, optimizer, and a state, new or restored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from dimba_jax import parallel
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import RunConfig, to_dict
from dimba_jax.data.pipeline import train_iterator
from dimba_jax.data.rows import Rows, encode_split
from dimba_jax.data.tokenizers import Tokenizer, check_kept, make_tokenizer, tokenizer_from_dict
from dimba_jax.diffusion import make_process, make_timestep_sampler
from dimba_jax.models.build import abstract_denoiser, check_implementation, make_denoiser
from dimba_jax.training.feed import Feed
from dimba_jax.training.figures import Usual
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.record import check_unchanged
from dimba_jax.training.state import TrainState
from dimba_jax.training.teachers import Taught, load_teachers


@dataclass
class Run:
    """A run that is ready to go on from `state`."""

    config: RunConfig
    workdir: Path
    mesh: Mesh
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    feed: Feed
    valid_rows: Rows
    checkpoints: Checkpoints
    state: TrainState
    usual: Usual  # losses of late
    start: int  # steps done before: 0, or the step it was restored from
    base_key: PRNGKeyArray  # of all draws of training
    taught: Taught  # what is learned from beside the data

    def save(self, step: int) -> None:
        """Writes a checkpoint of the present state, in the background."""
        self.checkpoints.save(
            step,
            self.state.parts(),
            # one place for all processes, whatever their number; and losses, so that a spike is one after a restart too
            data_state={"place": self.feed.state(), "losses": list(self.usual.losses), "taught_by": self.taught.by},
            config=to_dict(self.config),
            tokenizer=self.tokenizer.to_dict(),
        )


def prepare(config: RunConfig, workdir: Path) -> Run:
    """Builds a run, and restores the latest checkpoint of the workdir if it holds one.

    Raises:
      ConfigError: the batch, mesh or kernels do not fit the devices, the checkpoint has other settings, or a teacher is
        missing, of other rows or another than before.
      DataError: the data cannot be used.
      CheckpointError: the checkpoint's arrays are another model's, or a teacher's are damaged.
    """
    check_implementation(config)
    mesh = parallel.make_mesh(config.mesh)
    rows, pieces = config.training.batch_size, config.training.accumulate
    parallel.check_batch(mesh, rows, "config.training.batch_size")
    parallel.check_length(mesh, config.data.source_length + config.data.target_length)
    parallel.check_batch(mesh, rows // pieces, "config.training.batch_size / accumulate")
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.training.keep_checkpoints)
    step = checkpoints.whole_step()
    if step is not None:
        checkpoints.set_aside_after(step)
    if step is None:
        tokenizer = make_tokenizer(config, workdir)
    else:
        check_unchanged(checkpoints.read_config(step), config, workdir)
        tokenizer = tokenizer_from_dict(checkpoints.read_tokenizer(step))
        check_kept(config, tokenizer)
    # read before hours of training rather than after them
    valid_rows = encode_split(config.data, tokenizer, "valid")[0]
    source = train_iterator(config.data, tokenizer, rows, config.seed, jax.process_index(), jax.process_count())
    graphdef = abstract_denoiser(config, tokenizer.vocab_size)[0]
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    init_key, base_key = jax.random.split(jax.random.key(config.seed))

    losses, before = [], None
    init = fresh_state(config, tokenizer.vocab_size, optimizer)
    abstract = jax.eval_shape(init, init_key)
    where = parallel.placement(mesh, abstract)
    if step is None:
        state = jax.jit(init, out_shardings=where)(init_key)
        if config.training.init_from:
            from dimba_jax.interop.pretrained_mamba2 import initial_params

            params = initial_params(config, state.params, config.training.init_from)
            state = dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))
            state = jax.device_put(state, where)
    else:
        target = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), abstract, where
        )
        state = target.with_parts(checkpoints.restore(step, target.parts()))
        data_state = checkpoints.read_data_state(step)
        source.set_state(data_state["place"])
        losses, before = data_state["losses"], data_state.get("taught_by")
    done = step is not None and step >= config.training.steps
    taught = Taught(None, before) if done else load_teachers(config, tokenizer, mesh, workdir, before)
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        tokenizer=tokenizer,
        graphdef=graphdef,
        optimizer=optimizer,
        feed=Feed(source, mesh),
        valid_rows=valid_rows,
        checkpoints=checkpoints,
        state=state,
        usual=Usual(losses),
        start=step or 0,
        base_key=base_key,
        taught=taught,
    )


def fresh_state(
    config: RunConfig, vocab_size: int, optimizer: optax.GradientTransformation
) -> Callable[[PRNGKeyArray], TrainState]:
    """The function from a key to the state before the first step; to be called under jit, or for its shapes alone."""

    def init(key: PRNGKeyArray) -> TrainState:
        return TrainState.start(
            nnx.to_pure_dict(nnx.state(make_denoiser(config, vocab_size, nnx.Rngs(key)), nnx.Param)),
            optimizer,
            make_process(config.process, vocab_size),
            make_timestep_sampler(config.process),
        )

    return init
