"""From sequence files to packed batches: reading, validating, open reading frames, tokens."""
