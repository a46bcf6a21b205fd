"""Sweeps: many trials of one config, their records and what was found."""
