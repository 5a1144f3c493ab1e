"""Embedding files: format, reading, matching rows by id, pairs of files, other formats."""
