"""Solvers on grids in one to three dimensions: Hamilton-Jacobi equations and total variation."""

__all__: list[str] = []
