"""Statistics of experiments: pure functions on numbers, NumPy and SciPy only."""
