"""Controlled descent: the optimal control α = ∇u of a Hamilton-Jacobi-Bellman equation, computed four ways."""

__all__: list[str] = []
