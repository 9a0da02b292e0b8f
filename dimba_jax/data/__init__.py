"""Data: sources of text pairs, tokenizers, and batches of rows [source, EOS, PAD…][target, EOS, PAD…].

sources (jsonl, quora, hub, synthetic) → normalize → tokenizers → rows → pipeline.
"""
