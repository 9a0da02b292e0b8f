"""Sampling: from a prompt and noise to text. Nothing here imports training."""
