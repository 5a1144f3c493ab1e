"""From predictions to published files: parts, ranks that agree, signals, tables."""
