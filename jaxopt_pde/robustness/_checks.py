"""What norms, labels and logits must look like, checked where they are concrete."""

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["NORMS", "check_labels", "check_norm", "warn_if_nan", "warn_if_probabilities"]

NORMS: tuple[float, ...] = (1, 2, math.inf)


def check_norm(norm: Any, choices: Sequence[float] = NORMS, name: str = "norm") -> float:
    """``norm`` as 1, 2 or ``math.inf`` (the string "inf" is accepted too); raises unless it is among ``choices``."""
    value = math.inf if isinstance(norm, str) and norm == "inf" else norm
    known = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)) and value in choices
    if not known:
        msg = f"{name} must be one of {', '.join(str(choice) for choice in choices)}, got {norm!r}."
        raise ValueError(msg)
    return math.inf if math.isinf(value) else int(value)


def check_labels(labels: Any, num_examples: int, num_classes: int, name: str = "y") -> None:
    """Raises unless ``labels`` are ``num_examples`` integers of [0, ``num_classes``) (the range: if concrete)."""
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    if jnp.shape(labels) != (num_examples,):
        msg = f"{name} must have shape ({num_examples},), one label an example, got {jnp.shape(labels)}."
        raise ValueError(msg)
    dtype = jnp.result_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        msg = f"{name} must be integer class labels, got dtype {dtype}."
        raise TypeError(msg)
    if isinstance(labels, jax.core.Tracer) or not num_examples:
        return
    # As NumPy's: the minimum of a JAX array is a tracer inside a trace, even if the array is concrete.
    values = np.asarray(labels)
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest >= num_classes:
        msg = f"{name} must lie in [0, {num_classes}), got labels from {least} to {greatest}."
        raise ValueError(msg)


def warn_if_probabilities(logits: Any, stacklevel: int = 3) -> None:
    """Warns if every row of concrete ``logits`` [n, classes ≥ 2] lies in [0, 1] and sums to 1: a softmax was applied.

    Tracers pass: a warning needs values, and nothing here may synchronise inside a compiled function.
    """
    if isinstance(logits, jax.core.Tracer):
        return
    rows = np.asarray(logits, np.float64)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
        return
    # Rounding of a sum of c probabilities: below c units of the last place, of float16 at the coarsest.
    tolerance = rows.shape[1] * float(jnp.finfo(jnp.result_type(logits, jnp.float16)).eps)
    if rows.min() >= 0 and rows.max() <= 1 + tolerance and np.all(np.abs(rows.sum(-1) - 1) <= tolerance):
        msg = (
            "the logits look like probabilities: every row lies in [0, 1] and sums to 1. Softmax saturates, which "
            "hides the gradient from attacks and makes certificates false; hand over the logits before it."
        )
        warnings.warn(msg, UserWarning, stacklevel=stacklevel)


def warn_if_nan(logits: Any, stacklevel: int = 3) -> None:
    """Warns if concrete ``logits`` [n, classes] have a NaN: an attack fails there, which is no robustness."""
    if isinstance(logits, jax.core.Tracer):
        return
    bad = np.isnan(np.asarray(logits, np.float64)).any(axis=-1)
    if bad.any():
        msg = f"the logits of {bad.sum()} of {bad.size} images are NaN: no attack can succeed there, nothing is robust."
        warnings.warn(msg, UserWarning, stacklevel=stacklevel)
