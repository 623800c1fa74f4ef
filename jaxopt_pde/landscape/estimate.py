"""A number that was estimated, with its error."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Estimate"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, ``mean, standard_error = estimate``; a pytree, arrays of one shape.

    Where several things were drawn at random, the standard error is √(probe² + batch²): the first says how well
    *this* data's number is known, and falls with more probes; the second how far it may be from that of other data
    of the same kind, and falls with more data alone.

    Attributes:
        mean: the estimate.
        standard_error: of all that was drawn.
        probe_error: the standard error from random probes, samples or chains (for eigenvalues, what the iteration has
            left over); None where there are none.
        batch_error: the standard error over examples, from the spread of batches; None where the data came in one
            batch, whose error nothing is known of.
        info: diagnostics, a dict of arrays; each method documents its own.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde.landscape import Estimate
        >>> estimate = Estimate.combine(jnp.array(2.0), probe_error=jnp.array(0.3), batch_error=jnp.array(0.4))
        >>> low, high = estimate.interval()
        >>> print(f"{estimate.standard_error:.2f}, 95 %: {low:.2f} to {high:.2f}")
        0.50, 95 %: 1.02 to 2.98
    """

    mean: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    probe_error: Float[Array, "..."] | None = None
    batch_error: Float[Array, "..."] | None = None
    info: dict[str, Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def combine(
        cls,
        mean: Float[Array, "..."],
        *,
        probe_error: Float[Array, "..."] | None = None,
        batch_error: Float[Array, "..."] | None = None,
        info: dict[str, Array] | None = None,
    ) -> "Estimate":
        """The estimate whose standard error is the root of the sum of squares of those given, NaN if none is.

        Args:
            mean: the estimate.
            probe_error: see the class.
            batch_error: see the class.
            info: see the class.
        """
        parts = [part for part in (probe_error, batch_error) if part is not None]
        total = jnp.sqrt(sum(part**2 for part in parts)) if parts else jnp.full_like(mean, jnp.nan)
        return cls(mean, total, probe_error, batch_error, dict(info or {}))

    def interval(self, quantile: float = 1.959964) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Mean minus and plus ``quantile`` standard errors: by default 95 % if the error is normal.

        Args:
            quantile: of the standard normal distribution.
        """
        half = quantile * self.standard_error
        return self.mean - half, self.mean + half

    def __iter__(self) -> Iterator[Float[Array, "..."]]:
        """Mean and standard error, so that an estimate unpacks into the two."""
        return iter((self.mean, self.standard_error))
