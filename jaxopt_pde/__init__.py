"""jaxopt_pde: functional optimisation and PDE relaxation in JAX.

Train on the relaxed loss u(x, t), the solution of the viscous Hamilton-Jacobi equation

    u_t + ½|∇u|² = (T/2) Δu,     u(x, 0) = f(x),

with optax transformations: :func:`entropy_sgd` and its relatives. ``jaxopt_pde.smoothing`` has the
estimators of ∇u as plain functions, ``jaxopt_pde.models`` (needs Flax, imported on first use) the networks.
"""

__version__ = "0.1.0"
