"""The networks: embeddings, conditioning, mixers, blocks and the denoiser made of them."""

from dimba_jax.models.denoiser import Condition, Denoiser, count_parameters

__all__ = ["Condition", "Denoiser", "count_parameters"]
