"""Axes in, axes out: what the landscapes look like. Matplotlib is imported here alone."""

__all__: list[str] = []
