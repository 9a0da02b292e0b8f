"""The networks: embeddings, conditioning, mixers, blocks and the denoisers made of them."""

from dimba_jax.models.denoiser import Condition, Denoiser, count_parameters
from dimba_jax.models.token_denoiser import TokenDenoiser

__all__ = ["Condition", "Denoiser", "TokenDenoiser", "count_parameters"]
