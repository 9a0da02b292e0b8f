"""Sampling of token models: what stands at a masked position, which positions are unmasked next, and in what order."""
