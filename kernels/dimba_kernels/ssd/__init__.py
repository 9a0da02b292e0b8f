"""Mamba-2's state-space duality scan: one scalar decay per head."""
