"""Whether a machine gives the numbers that the original program gave, for two known contigs."""
