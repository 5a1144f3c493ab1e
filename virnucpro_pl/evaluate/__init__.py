"""Results against known labels: reading both, the figures, and the command that tells them."""
