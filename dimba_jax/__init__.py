"""Diffusion language models on Mamba backbones, in JAX.

Nothing is imported here: `import dimba_jax.sampling.load` brings what it needs and no more.
"""
