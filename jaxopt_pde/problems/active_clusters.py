"""k-means minibatches cluster by cluster, and the gradient averaged over the active examples alone."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from .. import _validate

__all__ = [
    "ClusterMoments",
    "active_gradient",
    "active_gradient_variance",
    "cluster_gradient_variance",
    "cluster_moments",
    "inverse_active_count",
]


class ClusterMoments(NamedTuple):
    """The examples nearest to each centre.

    Attributes:
        sizes: nⱼ [k], in examples.
        variances: sⱼ [k], their mean squared distance from their own mean, in [param²]; 0 for an empty cluster.
        sq_distances: Dⱼ² [k], from the centre to their mean, in [param²]; 0 for an empty cluster.
    """

    sizes: Int[np.ndarray, " k"]
    variances: Float[np.ndarray, " k"]
    sq_distances: Float[np.ndarray, " k"]


def cluster_moments(data: ArrayLike, centres: ArrayLike) -> ClusterMoments:
    """Sizes, variances and distances of the clusters the centres cut the data into; on the host, in float64.

    Args:
        data: examples [n, m], concrete.
        centres: xⱼ [k, m], concrete.

    Returns:
        :class:`ClusterMoments`: f(x) = ½ Σ (nⱼ/n) (sⱼ + Dⱼ²).

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> moments = cluster_moments([[0.0], [2.0], [9.0]], [[0.0], [9.0]])
        >>> print(moments.sizes, moments.variances, moments.sq_distances)
        [2 1] [1. 0.] [1. 0.]
    """
    data, centres = np.asarray(data, np.float64), np.asarray(centres, np.float64)
    if data.ndim != 2 or centres.ndim != 2 or data.shape[1] != centres.shape[1]:
        msg = f"data [n, m] and centres [k, m] must have the same m, got shapes {data.shape} and {centres.shape}."
        raise ValueError(msg)
    nearest = np.argmin(np.sum((centres[None] - data[:, None]) ** 2, axis=-1), axis=1)
    members = nearest == np.arange(len(centres))[:, None]
    sizes = members.sum(axis=1)
    means = np.where(sizes[:, None] > 0, members @ data / np.maximum(sizes, 1)[:, None], centres)
    spreads = np.sum((data - means[nearest]) ** 2, axis=1)
    variances = members @ spreads / np.maximum(sizes, 1)
    return ClusterMoments(sizes, variances, np.sum((centres - means) ** 2, axis=1))


def cluster_gradient_variance(
    moments: ClusterMoments, batch_size: int, *, replace: bool = True
) -> Float[np.ndarray, " k"]:
    """Variance of each centre's block of the minibatch gradient, E|∇ⱼf_B − ∇ⱼf|².

    (1/b) [pⱼ (sⱼ + Dⱼ²) − pⱼ² Dⱼ²] with pⱼ = nⱼ/n, times (n − b)/(n − 1) without replacement: one example contributes
    xⱼ − aᵢ with probability pⱼ, else 0. The sum over j is ``gradient_variance`` of :func:`kmeans`.

    Args:
        moments: of the clusters, from :func:`cluster_moments`.
        batch_size: b, 1 … n.
        replace: whether minibatches are drawn with replacement.

    Returns:
        [k], in [param²] (the loss has unit [param²], its gradient [param]).

    Raises:
        ValueError: a batch size out of range.

    Example:
        >>> moments = cluster_moments([[0.0], [2.0], [9.0]], [[0.0], [9.0]])
        >>> print(cluster_gradient_variance(moments, 2).round(4))
        [0.4444 0.    ]
    """
    count = _check_batch(moments, batch_size)
    p, s, squares = moments.sizes / count, moments.variances, moments.sq_distances
    variance = (p * (s + squares) - p**2 * squares) / batch_size
    return variance if replace else variance * (count - batch_size) / max(count - 1, 1)


def active_gradient(
    point: Float[Array, " d"], examples: Float[Array, "b m"]
) -> tuple[Float[Array, " d"], Int[Array, " k"]]:
    """The normalised minibatch gradient: for each centre the mean of xⱼ − aᵢ over the bⱼ examples nearest to it.

    Given bⱼ > 0 its mean is xⱼ − āⱼ, that of the cluster and not ∇ⱼf = pⱼ (xⱼ − āⱼ); its variance is
    :func:`active_gradient_variance`, larger than that of ∇ⱼf_B.

    Args:
        point: centres row by row [k·m], in [param].
        examples: the minibatch [b, m], in [param]: ``data[problem.draw(key)]``.

    Returns:
        The gradient [k·m], 0 for a centre without examples, and the counts bⱼ [k] int32.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient, counts = active_gradient(jnp.array([0.0, 9.0]), jnp.array([[1.0], [3.0]]))
        >>> print(gradient, counts)
        [-2.  0.] [2 0]
    """
    if examples.ndim != 2 or point.ndim != 1 or point.size % examples.shape[1]:
        msg = f"point [k·m] and examples [b, m] must fit, got shapes {point.shape} and {examples.shape}."
        raise ValueError(msg)
    centres = point.reshape(-1, examples.shape[1])
    nearest = jnp.argmin(jnp.sum((centres[None] - examples[:, None]) ** 2, axis=-1), axis=1)
    members = nearest[None, :] == jnp.arange(len(centres))[:, None]
    counts = jnp.sum(members, axis=1, dtype=jnp.int32)
    means = members.astype(examples.dtype) @ examples / jnp.maximum(counts, 1)[:, None].astype(examples.dtype)
    return jnp.where(counts[:, None] > 0, centres - means, 0.0).ravel(), counts


def inverse_active_count(size: int, num_examples: int, batch_size: int, *, replace: bool = True) -> float:
    """E[1/bⱼ | bⱼ > 0] for the number bⱼ of examples of one cluster in a minibatch.

    bⱼ is binomial (b, nⱼ/n) with replacement, hypergeometric without. It is 1 at b = 1, whatever nⱼ, and
    nears n/(nⱼ b) only as nⱼ b/n grows.

    Args:
        size: nⱼ, 1 … n.
        num_examples: their number n.
        batch_size: b, 1 … n.
        replace: whether minibatches are drawn with replacement.

    Returns:
        A number in (0, 1], summed on the host in float64.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> inverse_active_count(2, 6, 1), inverse_active_count(2, 6, 3).__round__(4)
        (1.0, 0.807)
    """
    _validate.check_count("num_examples", num_examples)
    for name, value in {"size": size, "batch_size": batch_size}.items():
        _validate.check_count(name, value)
        if value > num_examples:
            msg = f"{name} must be at most num_examples = {num_examples}, got {value}."
            raise ValueError(msg)
    counts, probabilities = _active_distribution(size, num_examples, batch_size, replace)
    return float(np.sum(probabilities / counts))


def active_gradient_variance(
    moments: ClusterMoments, batch_size: int, *, replace: bool = True
) -> Float[np.ndarray, " k"]:
    """Variance of each block of :func:`active_gradient`, given that the minibatch has an example of the cluster.

    sⱼ E[1/bⱼ | bⱼ > 0] with replacement, sⱼ E[(nⱼ − bⱼ)/(bⱼ (nⱼ − 1)) | bⱼ > 0] without: given bⱼ, the examples are a
    sample of that size from the cluster. The block is undefined with probability (1 − pⱼ)^b (with replacement). The
    approximation sⱼ/(pⱼ b) is its limit for large pⱼ b only: 3 sⱼ for pⱼ = ⅓, b = 1, where the variance is sⱼ.

    Args:
        moments: of the clusters, from :func:`cluster_moments`.
        batch_size: b, 1 … n.
        replace: whether minibatches are drawn with replacement.

    Returns:
        [k], in [param²]; NaN for an empty cluster.

    Raises:
        ValueError: a batch size out of range.

    Example:
        >>> moments = cluster_moments([[0.0], [2.0], [9.0]], [[0.0], [9.0]])
        >>> print(active_gradient_variance(moments, 1), cluster_gradient_variance(moments, 1).round(3))
        [1. 0.] [0.889 0.   ]
    """
    count = _check_batch(moments, batch_size)
    variances = np.full(len(moments.sizes), np.nan)
    for index in np.flatnonzero(moments.sizes):
        size = int(moments.sizes[index])
        active, probabilities = _active_distribution(size, count, batch_size, replace)
        left = 1.0 if replace else (size - active) / max(size - 1, 1)
        variances[index] = moments.variances[index] * np.sum(probabilities * left / active)
    return variances


def _check_batch(moments: ClusterMoments, batch_size: int) -> int:
    count = int(np.sum(moments.sizes))
    _validate.check_count("batch_size", batch_size)
    if batch_size > count:
        msg = f"batch_size must be at most the number of examples, {count}, got {batch_size}."
        raise ValueError(msg)
    return count


def _active_distribution(
    size: int, count: int, batch_size: int, replace: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The counts 1 … that can occur, and their probabilities given that the count is not 0."""
    others = count - size
    if replace:
        counts = np.arange(1, batch_size + 1) if others else np.array([batch_size])
        ratios = (batch_size - counts[:-1]) / counts[1:] * (size / max(others, 1))
    else:
        counts = np.arange(max(1, batch_size - others), min(size, batch_size) + 1)
        before = counts[:-1]
        ratios = (size - before) / counts[1:] * (batch_size - before) / (others - batch_size + 1 + before)
    # Successive ratios of the probabilities, in logarithms: none overflows, and the factor common to all drops out.
    logarithms = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    weights = np.exp(logarithms - logarithms.max())
    return counts, weights / weights.sum()
