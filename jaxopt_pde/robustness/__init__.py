"""Robustness: the calculus of the relaxed loss in the input space - penalties, attacks, certificates, extensions."""

__all__: list[str] = []
