"""A pass of Gaussian diffusion on embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.gaussian import Gaussian
from dimba_jax.diffusion.objective import counted
from dimba_jax.diffusion.passes.contract import Batch, Pass, StepDraws, is_best
from dimba_jax.diffusion.predict import predict


def gaussian_pass(
    graphdef: nnx.GraphDef,
    params: PyTree,
    process: Gaussian,
    batch: Batch,
    draws: StepDraws,
    config: RunConfig,
    *,
    all_target: bool = False,
) -> Pass:
    """Noises the targets and predicts them, perhaps from an earlier prediction (self-conditioning).

    Anchors among the target's positions are left as clean as the source, and are not predicted.
    `all_target` changes nothing here: padding of a source is hidden by the condition.
    """
    denoiser = nnx.merge(graphdef, params)
    tokens, target, valid = batch["tokens"], batch["target"], batch["valid"]
    t, noise_keys, keep, anchors = draws.rows.t, draws.rows.noise, draws.rows.keep, draws.rows.anchors
    diffused, known = target, valid
    positions = counted(target, valid, config.process.loss_on, config.process.loss_on_padding)
    if anchors is not None:
        diffused, known = target & ~anchors, valid | anchors  # an anchor may be padding, which is learned like a token
        positions = positions & ~anchors
    encode_key, network_key = (None, None) if draws.dropout is None else jax.random.split(draws.dropout)
    x0 = denoiser.embed(tokens)
    noised = process.corrupt(noise_keys, x0, t, diffused)
    condition = denoiser.encode(tokens, diffused, known, keep, key=encode_key)

    def first_pass(frozen: PyTree) -> Float[Array, "b l e"]:
        frozen_params, z, frozen_condition = frozen
        frozen_denoiser = nnx.merge(graphdef, frozen_params)
        return predict(frozen_denoiser, process, z, t, frozen_condition, None, network_key).x0_hat

    self_condition = None
    if draws.first_pass is not None:
        frozen = jax.lax.stop_gradient((params, noised.z, condition))
        nothing = jnp.zeros_like(noised.z)
        self_condition = jax.lax.cond(draws.first_pass, first_pass, lambda _: nothing, frozen)

    prediction = predict(denoiser, process, noised.z, t, condition, self_condition, network_key)
    terms = process.losses(prediction.raw, prediction.x0_hat, prediction.logits, tokens, x0, noised)
    return Pass(
        objective=process.total(terms | {"mse": terms["mse"] * process.weights(t)[:, None]}),
        terms=terms,
        positions=positions,
        predicted=positions,
        correct=positions & is_best(prediction.logits, tokens),
    )
