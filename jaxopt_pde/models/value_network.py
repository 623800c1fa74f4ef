"""A value function as a network, exact at the horizon."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from .. import _validate

__all__ = ["ValueNetwork"]


class ValueNetwork(nn.Module):
    """u(x, s) = V(x) + (S − s)·[net(x, s) + ½ xᵀA(s)x + r(s)·x], V exact at the horizon S and the start of training.

    The bracket stands for the mean of −u_s over [s, S]. Its last layers start at 0: the first control is ∇V, and
    training moves it away from there. A and r are polynomials of s: for quadratic f and V the value function is
    quadratic at every s, and a network without that path spends its training on saying so.

    Attributes:
        terminal_fn: V, x [d] -> scalar [loss].
        horizon: S > 0 in [param²/loss].
        features: hidden widths of net; empty for the polynomial alone.
        activation: elementwise, at least twice differentiable (training differentiates ∇u): not ReLU.
        quadratic: whether there are A and r.
        time_degree: degree ≥ 0 of A and r in s.

    ``__call__(x, time)`` takes one point [d] and one time and returns u, a scalar in [loss]; ``vmap`` it. ``apply`` is
    the ``value_fn`` of :func:`jaxopt_pde.control.backward_sde_loss`.

    Raises:
        ValueError: a width below 1, a horizon that is not positive, a negative ``time_degree``, x without exactly one
            axis, a V that is no scalar.
        TypeError: a width that is not an integer, or features that are not a sequence.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = ValueNetwork(lambda x: jnp.sum(x**2), horizon=1.0, features=(16,))
        >>> x = jnp.array([1.0, -2.0])
        >>> variables = model.init(jax.random.key(0), x, 0.0)
        >>> print(model.apply(variables, x, 1.0), jax.grad(model.apply, argnums=1)(variables, x, 0.3))
        5.0 [ 2. -4.]

    References:
        Our own design, after the residual forms with exact boundary values of Lagaris et al. 1998,
        arXiv:physics/9705023.
    """

    terminal_fn: Callable[[jax.Array], jax.Array]
    horizon: float
    features: Sequence[int] = (64, 64)
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    quadratic: bool = True
    time_degree: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.features, str) or not isinstance(self.features, Sequence):
            msg = f"features must be a sequence of hidden widths, as in (64, 64), got {self.features!r}."
            raise TypeError(msg)
        for layer, width in enumerate(self.features):
            _validate.check_count(f"features[{layer}]", width)
        _validate.check_positive("horizon", self.horizon)
        _validate.check_count("time_degree", self.time_degree, minimum=0)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, " d"], time: Float[Array, ""]) -> Float[Array, ""]:
        """u(x, time)."""
        if jnp.ndim(x) != 1:
            msg = f"x must be one point [d]; vmap over many. Got shape {jnp.shape(x)}."
            raise ValueError(msg)
        end = self.terminal_fn(x)
        _validate.check_scalar_output("terminal_fn", end)
        remaining = jnp.asarray(self.horizon - time, x.dtype)
        clock = 1 - 2 * remaining / self.horizon  # −1 … 1
        hidden = jnp.append(x, clock)
        for width in self.features:
            hidden = self.activation(nn.Dense(width)(hidden))
        rate = nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden)[0]
        if self.quadratic:
            powers = _polynomials(self.time_degree).astype(x.dtype) @ clock ** jnp.arange(
                self.time_degree + 1
            )
            shape = (self.time_degree + 1, x.shape[0], x.shape[0])
            curvature = self.param("curvature", nn.initializers.zeros, shape)
            slope = self.param("slope", nn.initializers.zeros, shape[:2])
            mean = self.param("mean_curvature", nn.initializers.zeros, shape[:1])
            form = curvature @ x @ x / jnp.sqrt(x.shape[0]) + mean * jnp.dot(x, x)
            rate += powers @ (slope @ x + form / 2)
        return end + remaining * rate


def _polynomials(degree: int) -> np.ndarray:
    """Row k: the monomial coefficients of the k-th polynomial on [−1, 1] orthonormal in the loss of training.

    Multiplied by S − s they stand in the tails' residuals, which weigh a late time by the tails that hold it: the
    weight is (1 − z)² (1 + z). In monomials the same fit is slower: they are far from orthogonal there.
    """
    nodes, weights = np.polynomial.legendre.leggauss(degree + 3)
    root = np.sqrt(weights * (1 - nodes) ** 2 * (1 + nodes) / 2)
    triangle = np.linalg.qr(root[:, None] * np.vander(nodes, degree + 1, increasing=True))[1]
    return np.linalg.inv(triangle).T * np.sign(np.diag(triangle))[:, None]
