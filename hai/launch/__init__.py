"""The ways to start the loop: in this process, on Ray Train workers; and what happens before and after it."""

__all__: list[str] = []
