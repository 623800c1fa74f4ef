"""A loss with a stochastic gradient whose moments are known exactly."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Key

from .. import _validate
from .problem import frozen

__all__ = ["StochasticProblem"]

Point = Float[Array, " d"]
Value = Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class StochasticProblem:
    """A loss f that is the mean of examples, seen through minibatches of b of them.

    The gradient of the mean over a random minibatch B is ∇f_B(x) = ∇f(x) + e with E e = 0. With the variance of one
    example s₁(x) = E|∇f_i(x) − ∇f(x)|²,

        E|e|² = s₁(x)/b                      independent examples, or drawn with replacement
        E|e|² = s₁(x)/b · (n − b)/(n − 1)    drawn without replacement from n
        E|∇f_B(x)|² = |∇f(x)|² + E|e|²

    and for all x, with F = f − f*, E|e|² ≤ σ² + 2ρF. Everything below takes one point of shape [d], also for d = 1,
    computes in its dtype and composes with ``jit``, ``vmap``, ``grad`` and ``scan``; the problem is static: close over
    it. ``dataclasses.replace(problem, batch_size=16)`` is the same problem at another batch size.

    Methods:
        gradient(point): ∇f [d].
        draw(key, batch_size=None): one minibatch, a tree with leading axis b; ``batch_loss`` of its halves, of
            single examples or of several minibatches joined is what it seems.
        minibatch_loss(point, key, batch_size=None): f_B, scalar. ``jax.value_and_grad`` of it gives loss and
            gradient on the same minibatch.
        minibatch_gradient(point, key, batch_size=None): ∇f_B [d], on the minibatch ``draw`` gives for this key.
        gradient_variance(point, batch_size=None): E|∇f_B − ∇f|², exact; ``batch_size`` may be traced.
        expected_grad_sq_norm(point, batch_size=None): E|∇f_B|², exact.
        variance_factor(batch_size=None): E|e|²/s₁.

    Properties: ``dimension`` d; ``noise_variance`` σ² and ``noise_growth`` ρ at ``batch_size``;
    ``initial_sq_distance`` q₀ = |x₀ − x*|²; ``rate_constants``, a dict of what the bounds of this package ask for:
    ``space_adaptive_bound(steps, **problem.rate_constants)``.

    Attributes:
        name: what to call it in a table or a figure.
        loss: f, point [d] → scalar, in [loss].
        batch_loss: (point [d], minibatch) → f_B, scalar, the mean over the minibatch.
        example_variance: point [d] → s₁, exact, in [loss²/param²].
        minimum: f*, in [loss].
        minimiser: x* [d], in [param].
        initial: where to start, x₀ [d].
        strong_convexity: μ > 0, in [loss/param²].
        smoothness: L ≥ μ, in [loss/param²].
        example_noise_variance: σ² for one example, in [loss²/param²]: s₁ itself where that is constant.
        example_noise_growth: ρ for one example, ≥ 0, in [loss/param²]; 0 where s₁ is bounded by σ².
        batch_size: b, where a method is not told another.
        num_examples: n; None for an infinite population.
        replace: whether minibatches are drawn with replacement; an infinite population needs True.
        convex: False if μ, L, σ² and ρ hold only near ``minimiser``, as the constructor says, and x* is a local
            minimiser: then no bound is proved.
        draw_examples: (key, batch_size) → minibatch, a tree with leading axis b; None: indices of examples [b] int32.
        excess_loss: point [d] → F = f − f*. Constructors give it without cancellation where they can; None: by
            subtraction, with the rounding errors of f.

    Raises:
        ValueError: constants, shapes or a batch size out of range.
        TypeError: a batch size that is not an integer.

    Example:
        >>> import dataclasses, jax
        >>> from jaxopt_pde.problems import noisy_quadratic
        >>> problem = noisy_quadratic([1.0, 4.0], noise_variance=2.0, batch_size=4)
        >>> x = problem.initial_point()
        >>> print(problem.gradient(x), problem.minibatch_gradient(x, jax.random.key(0)).shape)
        [1. 4.] (2,)
        >>> print(problem.gradient_variance(x), problem.expected_grad_sq_norm(x, batch_size=1))
        0.5 19.0
        >>> dataclasses.replace(problem, batch_size=16).noise_variance
        0.125
    """

    name: str
    loss: Callable[[Point], Value]
    batch_loss: Callable[[Point, Any], Value]
    example_variance: Callable[[Point], Value]
    minimum: float
    minimiser: Float[np.ndarray, " d"]
    initial: Float[np.ndarray, " d"]
    strong_convexity: float
    smoothness: float
    example_noise_variance: float
    example_noise_growth: float = 0.0
    batch_size: int = 1
    num_examples: int | None = None
    replace: bool = True
    convex: bool = True
    draw_examples: Callable[[Key[Array, ""], int], Any] | None = None
    excess_loss: Callable[[Point], Value] | None = None

    def __post_init__(self) -> None:
        fields = {"minimiser": frozen(self.minimiser), "initial": frozen(self.initial)}
        if fields["minimiser"].ndim != 1 or fields["minimiser"].shape != fields["initial"].shape:
            shapes = f"{fields['minimiser'].shape} and {fields['initial'].shape}"
            msg = f"minimiser and initial must both have shape [d], got {shapes}."
            raise ValueError(msg)
        if not np.all(np.isfinite(fields["initial"])):
            msg = f"initial must be finite, got {fields['initial']!r}."
            raise ValueError(msg)
        _validate.check_positive("strong_convexity", self.strong_convexity)
        _validate.check_nonnegative("example_noise_variance", self.example_noise_variance)
        _validate.check_nonnegative("example_noise_growth", self.example_noise_growth)
        if not self.smoothness >= self.strong_convexity:
            msg = f"smoothness must be at least strong_convexity = {self.strong_convexity}, got {self.smoothness!r}."
            raise ValueError(msg)
        if self.num_examples is None:
            if not self.replace or self.draw_examples is None:
                msg = "num_examples must be given where replace is False or draw_examples is None, got None."
                raise ValueError(msg)
        else:
            _validate.check_count("num_examples", self.num_examples)
        self._batch_size(self.batch_size)
        names = (
            "minimum",
            "strong_convexity",
            "smoothness",
            "example_noise_variance",
            "example_noise_growth",
        )
        fields |= {name: float(getattr(self, name)) for name in names}
        if self.excess_loss is None:
            fields["excess_loss"] = lambda point: self.loss(point) - self.minimum
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def dimension(self) -> int:
        """The number of coordinates, d."""
        return self.minimiser.size

    @property
    def noise_variance(self) -> float:
        """σ² of a minibatch of ``batch_size``."""
        return self.example_noise_variance * self.variance_factor()

    @property
    def noise_growth(self) -> float:
        """ρ of a minibatch of ``batch_size``."""
        return self.example_noise_growth * self.variance_factor()

    @property
    def initial_sq_distance(self) -> float:
        """q₀ = |x₀ − x*|²."""
        return float(np.sum((self.initial - self.minimiser) ** 2))

    @property
    def rate_constants(self) -> dict[str, float]:
        """The keyword arguments of the bounds: μ, L, σ², ρ and q₀."""
        names = ("strong_convexity", "smoothness", "noise_variance", "noise_growth", "initial_sq_distance")
        return {name: getattr(self, name) for name in names}

    def initial_point(self, dtype: DTypeLike | None = None) -> Point:
        """x₀ on the device, in JAX's default float dtype or another."""
        return jnp.asarray(self.initial, jnp.result_type(float) if dtype is None else dtype)

    def gradient(self, point: Point) -> Point:
        """∇f."""
        return jax.grad(self.loss)(point)

    def draw(self, key: Key[Array, ""], batch_size: int | None = None) -> Any:
        """One minibatch."""
        batch_size = self._batch_size(batch_size)
        if self.draw_examples is not None:
            return self.draw_examples(key, batch_size)
        if self.replace:
            return jax.random.randint(key, (batch_size,), 0, self.num_examples)
        return jax.random.permutation(key, self.num_examples)[:batch_size]

    def minibatch_loss(self, point: Point, key: Key[Array, ""], batch_size: int | None = None) -> Value:
        """f_B for the minibatch of this key."""
        return self.batch_loss(point, self.draw(key, batch_size))

    def minibatch_gradient(self, point: Point, key: Key[Array, ""], batch_size: int | None = None) -> Point:
        """∇f_B for the minibatch of this key."""
        return jax.grad(self.minibatch_loss)(point, key, batch_size)

    def variance_factor(self, batch_size: ArrayLike | None = None) -> ArrayLike:
        """1/b, with replacement; (n − b)/(b (n − 1)) without; a float, or an array for a traced ``batch_size``."""
        batch_size = self.batch_size if batch_size is None else batch_size
        if isinstance(batch_size, numbers.Real):
            self._check_range(batch_size)
        if self.replace:
            return 1 / batch_size
        return (self.num_examples - batch_size) / (batch_size * max(self.num_examples - 1, 1))

    def gradient_variance(self, point: Point, batch_size: ArrayLike | None = None) -> Value:
        """E|∇f_B − ∇f|²."""
        return self.example_variance(point) * self.variance_factor(batch_size)

    def expected_grad_sq_norm(self, point: Point, batch_size: ArrayLike | None = None) -> Value:
        """E|∇f_B|²."""
        return jnp.sum(self.gradient(point) ** 2) + self.gradient_variance(point, batch_size)

    def _batch_size(self, batch_size: int | None) -> int:
        batch_size = self.batch_size if batch_size is None else batch_size
        _validate.check_count("batch_size", batch_size)
        self._check_range(batch_size)
        return int(batch_size)

    def _check_range(self, batch_size) -> None:
        if not 1 <= batch_size <= (np.inf if self.num_examples is None else self.num_examples):
            limit = (
                ""
                if self.num_examples is None
                else f" and at most the number of examples, {self.num_examples}"
            )
            msg = f"batch_size must be at least 1{limit}, got {batch_size!r}."
            raise ValueError(msg)
