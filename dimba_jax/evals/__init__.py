"""Scores of generated text: sequence-to-sequence metrics, per-example records, the report."""
