"""Instruction tuning as a research instrument, in JAX."""
