"""Scores: of outputs for pairs, of the likelihood of text, of text drawn freely; tasks of the evaluate command."""
