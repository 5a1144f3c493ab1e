"""By what an embedding file of this package is known."""

from __future__ import annotations

FORMAT = "virnucpro-pl embeddings"
FORMAT_VERSION = 1
"""Root attributes `format` and `format_version`."""
