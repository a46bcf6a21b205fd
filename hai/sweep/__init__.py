"""Sweeps: many trials of one config, what is tried next, their records and what was found."""

__all__: list[str] = []
