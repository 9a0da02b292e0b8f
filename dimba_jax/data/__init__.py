"""Data: sources of text pairs or of running text, tokenizers, and batches of rows.

pairs:  sources (jsonl, quora, hub, synthetic) → normalize → tokenizers → rows → pipeline;
        a row is [source, EOS, PAD…][target, EOS, PAD…].
text:   corpus → tokenizers → text → pipeline; a row is a stretch of the stream, or a line [tokens, EOS, PAD…].
"""
