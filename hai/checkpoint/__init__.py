"""Checkpoints that are whole or refused, kept on a local disk first and on the storage in the background."""
