"""Regularised logistic regression on given data, with its minimum and the moments of its minibatch gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import _validate
from .problem import constants
from .stochastic_problem import StochasticProblem

__all__ = ["logistic"]


def logistic(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    regularisation: float = 1e-2,
    batch_size: int = 1,
    replace: bool = True,
    initial: ArrayLike | None = None,
) -> StochasticProblem:
    """ℓ2-regularised logistic regression, of two classes or more, on data given as arrays.

    f(x) = (1/n) Σᵢ [log Σ_c exp(z_ic) − z_{i,yᵢ}] + (λ/2) |x|², with z_i = W aᵢ and x the rows of W one after the
    other: one row for each class, or, for two classes, a single row for the second, the first having z = 0. With the
    residuals rᵢ = softmax(zᵢ) − e_{yᵢ} (of the rows there are), ∇ℓᵢ = rᵢ ⊗ aᵢ and

        s₁(x) = (1/n) Σᵢ |rᵢ|² |aᵢ|² − |(1/n) Σᵢ rᵢ ⊗ aᵢ|²

    Constants: μ = λ, exactly the infimum over x of the Hessian's least eigenvalue; L = λ + c λ_max(A'A/n) with c = ¼
    for two classes, where it is attained at x = 0, and ½ for more, where it is an upper bound, approached far out if A
    has a constant column. The noise: ℓᵢ is convex and c|aᵢ|²-smooth, so
    E|∇ℓᵢ(x) − ∇ℓᵢ(x*)|² ≤ 2 c max|aᵢ|² F(x), and with |a + b|² ≤ 2|a|² + 2|b|²

        s₁(x) ≤ σ² + 2ρF(x),  σ² = 2 s₁(x*),  ρ = 2 c max|aᵢ|²

    x* is found on the host, in float64, by Newton's method with a line search, until |∇f|²/(2λ), which bounds
    f − f*, is below 1e-12 of 1 + f. Standardise the features, and add a column of ones for an intercept (it is
    regularised like the rest): L grows with the square of their scale.

    Args:
        features: A [n, m], a row for each example. Concrete.
        labels: y [n], of any type; the classes are its distinct values in order, at least 2.
        regularisation: λ > 0, in [loss/param²].
        batch_size: b, 1 … n.
        replace: whether minibatches are drawn with replacement.
        initial: x₀ [d], in [param]; None: 0.

    Returns:
        :class:`StochasticProblem` of dimension m (two classes) or m·classes; a minibatch holds the indices of its
        examples [b].

    Raises:
        ValueError: arrays not finite or of another shape, a single class, λ not positive, a batch size out of range.
        TypeError: a batch size that is not an integer.

    Example:
        >>> problem = logistic([[1.0], [2.0], [-1.0], [1.0]], [1, 1, 0, 0], regularisation=0.1)
        >>> print(problem.dimension, problem.minimiser.round(4), round(problem.minimum, 4))
        1 [0.7666] 0.5561
        >>> print(problem.strong_convexity, problem.smoothness)  # 0.1 + (1 + 4 + 1 + 1)/4/4
        0.1 0.5375
    """
    _validate.check_positive("regularisation", regularisation)
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size or not np.all(np.isfinite(features)):
        msg = f"features must be finite, of shape [n, m], got shape {features.shape}: {features!r}."
        raise ValueError(msg)
    count, width = features.shape
    labels = np.asarray(labels)
    if labels.shape != (count,):
        msg = f"labels must have shape [{count}], one for each row of features, got {labels.shape}."
        raise ValueError(msg)
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        msg = f"labels must be of at least two classes, got {classes!r}."
        raise ValueError(msg)
    data = _Data(features, np.eye(len(classes))[targets], float(regularisation))
    dimension = data.rows * width
    initial = np.zeros(dimension) if initial is None else np.asarray(initial, np.float64)
    if initial.shape != (dimension,):
        msg = f"initial must have shape [{dimension}], got {initial.shape}."
        raise ValueError(msg)
    minimiser, minimum = _newton(data)
    sq_norms = np.sum(features**2, axis=1)
    curvature = 0.25 if data.rows == 1 else 0.5
    largest = np.linalg.eigvalsh(features.T @ features / count)[-1]
    residuals = data.residuals(minimiser)
    mean_gradient = residuals.T @ features / count
    variance_at_minimiser = np.mean(np.sum(residuals**2, axis=1) * sq_norms) - np.sum(mean_gradient**2)

    def batch_loss(point, batch):
        a, y = constants(features, point), jnp.asarray(targets)
        if batch is not None:
            a, y = a[batch], y[batch]
        losses = _cross_entropy(_logits(point, a), y)
        return jnp.mean(losses) + 0.5 * regularisation * jnp.sum(point**2)

    def example_variance(point):
        a = constants(features, point)
        probabilities = jax.nn.softmax(_logits(point, a), axis=1)
        r = (probabilities - constants(data.one_hot, point))[:, -data.rows :]
        second = jnp.mean(jnp.sum(r**2, axis=1) * constants(sq_norms, point))
        return jnp.maximum(second - jnp.sum((r.T @ a / count) ** 2), 0.0)

    return StochasticProblem(
        name="logistic regression",
        loss=lambda point: batch_loss(point, None),
        batch_loss=batch_loss,
        example_variance=example_variance,
        minimum=minimum,
        minimiser=minimiser,
        initial=initial,
        strong_convexity=regularisation,
        smoothness=regularisation + curvature * max(largest, 0.0),
        example_noise_variance=2 * max(variance_at_minimiser, 0.0),
        example_noise_growth=2 * curvature * sq_norms.max(),
        batch_size=batch_size,
        num_examples=count,
        replace=replace,
    )


def _logits(point: Float[Array, " d"], features: Float[Array, "n m"]) -> Float[Array, "n c"]:
    z = features @ point.reshape(-1, features.shape[1]).T
    return jnp.concatenate([jnp.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z


def _cross_entropy(logits: Float[Array, "n c"], targets: Array) -> Float[Array, " n"]:
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


class _Data(NamedTuple):
    """The problem on the host, in float64."""

    features: Float[np.ndarray, "n m"]
    one_hot: Float[np.ndarray, "n c"]
    regularisation: float

    @property
    def rows(self) -> int:
        """Rows of W: one for two classes."""
        return 1 if self.one_hot.shape[1] == 2 else self.one_hot.shape[1]

    def logits(self, x: np.ndarray) -> np.ndarray:
        z = self.features @ x.reshape(self.rows, -1).T
        return np.concatenate([np.zeros_like(z), z], axis=1) if self.rows == 1 else z

    def loss(self, x: np.ndarray) -> float:
        z = self.logits(x)
        top = z.max(axis=1)
        losses = top + np.log(np.sum(np.exp(z - top[:, None]), axis=1)) - np.sum(z * self.one_hot, axis=1)
        return float(np.mean(losses) + 0.5 * self.regularisation * np.sum(x**2))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        z = self.logits(x)
        weights = np.exp(z - z.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        return (self.probabilities(x) - self.one_hot)[:, -self.rows :]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return (self.residuals(x).T @ self.features / len(self.features)).ravel() + self.regularisation * x

    def hessian(self, x: np.ndarray) -> np.ndarray:
        p = self.probabilities(x)[:, -self.rows :]
        count, width = self.features.shape
        weighted = p[:, :, None] * self.features[:, None]
        hessian = np.zeros((self.rows, width, self.rows, width))
        for row in range(self.rows):
            hessian[row, :, row] = self.features.T @ weighted[:, row]
        weighted = weighted.reshape(count, x.size)
        hessian = (hessian.reshape(x.size, x.size) - weighted.T @ weighted) / count
        return hessian + self.regularisation * np.eye(x.size)


def _newton(data: _Data) -> tuple[np.ndarray, float]:
    """x* and f*: steps until the certificate |∇f|²/(2λ) ≥ f − f* is met."""
    x = np.zeros(data.rows * data.features.shape[1])
    value = data.loss(x)
    for _ in range(100):
        gradient = data.gradient(x)
        if gradient @ gradient / (2 * data.regularisation) <= 1e-12 * (1 + value):
            for _ in range(2):  # to rounding
                x = x - np.linalg.solve(data.hessian(x), data.gradient(x))
            return x, data.loss(x)
        step, size = np.linalg.solve(data.hessian(x), gradient), 1.0
        while data.loss(x - size * step) > value - 0.25 * size * (gradient @ step) and size > 1e-10:
            size *= 0.5
        x = x - size * step
        value = data.loss(x)
    norm = np.linalg.norm(gradient)
    msg = (
        f"features and labels must let Newton's method converge, got |gradient| = {norm:.1e} after 100 steps."
    )
    raise ValueError(msg)
