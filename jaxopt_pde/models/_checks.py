"""What images and (height, width) pairs must look like."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .. import _validate

__all__ = ["check_images", "check_pair"]


def check_pair(name: str, value: Any, minimum: int = 1) -> tuple[int, int]:
    """``value`` as a tuple; raises unless it is a sequence of two integers of at least ``minimum``."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        msg = f"{name} must be a pair of integers, got {value!r}."
        raise ValueError(msg)
    for position, entry in enumerate(value):
        _validate.check_count(f"{name}[{position}]", entry, minimum)
    return int(value[0]), int(value[1])


def check_images(name: str, value: Any) -> None:
    """Raises unless ``value`` has four axes."""
    if jnp.ndim(value) != 4:
        msg = f"{name} must have shape [batch, height, width, channels], got {jnp.shape(value)}."
        raise ValueError(msg)
