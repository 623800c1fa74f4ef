"""The value function for quadratic f and V in closed form: the oracle of the controlled optimiser's tests."""

import jax.numpy as jnp
import numpy as np


class LinearQuadratic:
    """f = ½xᵀAx − bᵀx, V = ½xᵀQx + qᵀx, dx = −∇f ds − α ds + √T dW: u(x, s) = ½xᵀP(s)x + r(s)ᵀx + c(s) on a time mesh.

    The mean and the covariance of x(S) under −∇f alone are those of an Ornstein-Uhlenbeck process, and
    u = −T log E exp(−V/T) is then a Gaussian integral: no Riccati equation is solved here.
    """

    def __init__(self, A, Q, *, horizon, temperature, num_steps, b=None, q=None):
        d = len(A)
        b, q = (np.zeros(d) if v is None else np.asarray(v) for v in (b, q))
        self.A, self.Q, self.b, self.q = map(np.asarray, (A, Q, b, q))
        self.step_size, self.num_steps, self.temperature = horizon / num_steps, num_steps, temperature
        a, R = np.linalg.eigh(A)
        coefficients = []
        for tau in horizon - self.step_size * np.arange(num_steps + 1):
            decay = R @ np.diag(np.exp(-a * tau)) @ R.T
            W = R @ np.diag(-np.expm1(-2 * a * tau) / (2 * a)) @ R.T  # covariance of x(S) over T
            m = R @ np.diag(-np.expm1(-a * tau) / a) @ R.T @ b
            K = np.linalg.inv(np.eye(d) + W @ Q)
            S = Q @ K
            logdet = np.linalg.slogdet(np.eye(d) + W @ Q)[1]
            c = m @ S @ m / 2 + q @ K @ m - q @ K @ W @ q / 2 + temperature / 2 * logdet
            coefficients.append((decay @ S @ decay, decay @ (S @ m + K.T @ q), c))
        self.P, self.r, self.c = (np.stack(group) for group in zip(*coefficients, strict=True))

    def _at(self, time, x):
        index = jnp.round(time / self.step_size).astype(jnp.int32)
        return (jnp.asarray(table, x.dtype)[index] for table in (self.P, self.r, self.c))

    def loss(self, x):
        return x @ jnp.asarray(self.A, x.dtype) @ x / 2 - jnp.asarray(self.b, x.dtype) @ x

    def terminal(self, x):
        return x @ jnp.asarray(self.Q, x.dtype) @ x / 2 + jnp.asarray(self.q, x.dtype) @ x

    def value(self, x, time):
        P, r, c = self._at(time, x)
        return x @ P @ x / 2 + r @ x + c

    def control(self, x, time, key=None):
        P, r, _ = self._at(time, x)
        return P @ x + r
