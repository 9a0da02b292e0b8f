"""Mamba's selective scan (S6): a diagonal decay per channel and state."""
