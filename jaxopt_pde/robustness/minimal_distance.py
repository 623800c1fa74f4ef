"""How far is each image from the nearest misclassified one? An upper bound that holds, as small as we can find."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from .. import _validate
from . import _steps
from ._attack_arguments import AttackResult, LogitsFn, Model, check_attack, image_keys, split_model
from ._checks import check_norm, warn_if_nan, warn_if_probabilities

__all__ = ["minimal_distance"]

# The ball shrinks or grows by a factor 1 ± γ, γ from 0.05 to 10⁻⁴ along a half cosine: Pintor et al., section 3.
_FIRST_GROWTH, _LAST_GROWTH = 0.05, 1e-4
# The first point lies this much beyond the linearised boundary, as in DeepFool.
_OVERSHOOT = 1.02
_LAST_STEP = 1e-2  # of the first step, at the end of the half cosine


def minimal_distance(
    logits_fn: LogitsFn,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    key: Key[Array, ""],
    *,
    norm: float,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_steps: int = 100,
    restarts: int = 1,
    candidates: int = 9,
    bisections: int = 10,
) -> AttackResult:
    """The smallest successful perturbation found for each image, min ‖z - x‖ₚ over misclassified z in the box.

    Every distance is that of an image that is misclassified, so it bounds the true distance from above; only a
    certificate bounds it from below. Three stages, one compiled program:

    1. The boundary to each of the ``candidates`` classes with the largest logits is linearised at x; the nearest is
       |f_y - f_j|/‖∇(f_y - f_j)‖_q away. The search starts just beyond it (restart r: beyond the r-th nearest).
    2. Linearised steps (DeepFool) until z is misclassified, then fast minimum-norm steps: z ascends the margin and
       is projected onto a ball about x that shrinks while z is misclassified and grows while it is not. The
       smallest misclassified z is kept.
    3. Bisection along the segment from x to it.

    For a linear classifier whose nearest boundary is met inside the box, stage 1 is exact and stage 3 removes its
    overshoot.

    Args:
        logits_fn: images [n, …] to logits [n, classes], not probabilities; with weights through
            ``functools.partial(apply, params)``, as in :func:`pgd`.
        x: images [n, …], floating, inside ``bounds``.
        y: true labels [n], integers of [0, classes).
        key: one key or n keys, as in :func:`pgd`. Used by the restarts and where the linearisation at x finds nothing.
        norm: 1, 2 or ∞.
        bounds: (low, high) of the box of all images, static; infinite for none.
        num_steps: steps of each restart (static).
        restarts: starts, from ever farther linearised boundaries and, after the first, with noise of half their
            distance (static).
        candidates: classes whose boundaries are linearised (static), at most classes - 1; one gradient each.
        bisections: halvings of the last segment (static): a relative precision of 2⁻ᵇ along it; at least 1.

    Returns:
        :class:`AttackResult`: x, the margin max_{j≠y} fⱼ - f_y of x as ``loss``, success and distance [n]. An image
        that is misclassified from the start: itself, True, 0. No misclassified image found: itself, False, ∞.

    Raises:
        ValueError, TypeError: as in :func:`pgd`.

    Warns:
        UserWarning: the logits look like probabilities, or are NaN.

    Good values:
        As they stand on networks trained plainly. Adversarially trained ones and models that mask their gradients want
        more steps and restarts: watch whether the median still falls.

    Example:
        The half-space x₁ > x₀ is |0.7 - 0.5|/√2 away in ℓ2:

        >>> import jax, jax.numpy as jnp, jaxopt_pde
        >>> linear = lambda x: jnp.stack([x[:, 0], x[:, 1]], -1)
        >>> found = jaxopt_pde.robustness.minimal_distance(
        ...     linear, jnp.array([[0.7, 0.5]]), jnp.array([0]), jax.random.key(0), norm=2)
        >>> print(f"{found.distance[0]:.3f}")
        0.141

    References:
        Pintor, Roli, Brendel & Biggio 2021, Fast minimum-norm attacks, arXiv:2102.12827 (stage 2; the steps here
        are measured in the size of the perturbation). Moosavi-Dezfooli, Fawzi & Frossard 2016, DeepFool,
        arXiv:1511.04599 (stage 1).
    """
    norm = check_norm(norm)
    for name, count in (("num_steps", num_steps), ("restarts", restarts), ("candidates", candidates)):
        _validate.check_count(name, count)
    _validate.check_count("bisections", bisections)
    x, y, bounds = check_attack(logits_fn, x, y, bounds)
    model, arrays = split_model(logits_fn)
    settings = _Settings(model, norm, bounds, num_steps, restarts, candidates, bisections)
    result, logits = _run(arrays, x, y, image_keys(key, len(x)), settings=settings)
    warn_if_probabilities(logits)
    warn_if_nan(logits)
    return result


class _Settings(NamedTuple):
    """What fixes the compiled program."""

    model: Model
    norm: float
    bounds: tuple[float, float]
    num_steps: int
    restarts: int
    candidates: int
    bisections: int


class _Search(NamedTuple):
    """Where the search of one restart is, and the best of all restarts."""

    point: Float[Array, "n ..."]
    radius: Float[Array, " n"]
    crossed: Bool[Array, " n"]  # whether this restart has met a misclassified image
    best: Float[Array, "n ..."]
    best_distance: Float[Array, " n"]  # ∞ until one is found


@functools.partial(jax.jit, static_argnames="settings")
def _run(
    arrays: list, x: Array, y: Array, keys: Array, *, settings: _Settings
) -> tuple[AttackResult, Float[Array, "n classes"]]:
    arrays, x = jax.lax.stop_gradient((arrays, x))
    logits_fn, norm = settings.model.bind(arrays), settings.norm
    ranked, distances = _linearised_boundaries(logits_fn, x, y, settings)
    low, high = settings.bounds
    room = _steps.image_norm(jnp.maximum(x - low, high - x), norm)

    def start(restart: Array) -> tuple[Array, Array]:
        """The point beyond the restart-th linearised boundary, and its distance."""
        rank = restart % ranked.shape[0]
        distance = distances[rank]
        _, gradient = _class_gradient(logits_fn, x, y, ranked[rank])
        gradient = _steps.open_gradient(gradient, x, settings.bounds)
        known = jnp.isfinite(distance)
        away = jnp.minimum(jnp.where(known, _OVERSHOOT * distance, 0), room)
        point = x + _steps.spread(away, x) * _steps.ascent_direction(gradient, norm)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
        amount = jnp.where(known, jnp.where(restart > 0, distance / 2, 0), jnp.minimum(room, 1) / 10)
        point = jnp.clip(point + _steps.uniform_in_ball(own, x, amount, norm), low, high)
        return point, _steps.image_norm(point - x, norm)

    def total(points: Array) -> tuple[Array, Array]:
        values = _steps.margins(logits_fn(points), y)
        return values.sum(), values

    def visit(index: Array, search: _Search) -> _Search:
        step = index % settings.num_steps

        def begin() -> tuple[Array, Array, Array]:
            return *start(index // settings.num_steps), jnp.zeros_like(search.crossed)

        point, radius, crossed = jax.lax.cond(step == 0, begin, lambda: search[:3])
        gradient, margin = jax.grad(total, has_aux=True)(point)
        gradient = _steps.open_gradient(gradient, point, settings.bounds)
        distance = _steps.image_norm(point - x, norm)
        success = margin > 0
        nearer = success & (distance < search.best_distance)
        best = jnp.where(_steps.spread(nearer, x), point, search.best)
        best_distance = jnp.where(nearer, distance, search.best_distance)
        crossed |= success

        cosine = (1 + jnp.cos(math.pi * step / settings.num_steps)) / 2
        growth = (_LAST_GROWTH + (_FIRST_GROWTH - _LAST_GROWTH) * cosine).astype(x.dtype)
        slope = _steps.image_norm(gradient, _steps.dual(norm))
        # Not across yet: the ball that reaches the boundary linearised here.
        short = jnp.where(slope > 0, jnp.abs(margin) / jnp.where(slope > 0, slope, 1), distance)
        outwards = jnp.where(crossed, radius * (1 + growth), distance + short.astype(x.dtype))
        inwards = jnp.minimum(radius * (1 - growth), best_distance)
        radius = jnp.minimum(jnp.where(success, inwards, outwards), room)

        # Across: Euclidean steps. Not across in this restart yet: on to the boundary linearised here, as in DeepFool.
        fraction = (_LAST_STEP + (1 - _LAST_STEP) * cosine).astype(x.dtype)
        length = fraction * _steps.image_norm(point - x, 2)
        euclidean = _steps.spread(length, x) * _steps.ascent_direction(gradient, 2)
        straight = _steps.spread(_OVERSHOOT * short.astype(x.dtype), x) * _steps.ascent_direction(
            gradient, norm
        )
        point = point + jnp.where(_steps.spread(crossed, x), euclidean, straight)
        point = _steps.project(point, x, jnp.where(crossed, radius, room), norm, settings.bounds)
        return _Search(point, radius, crossed, best, best_distance)

    none = jnp.full(x.shape[:1], jnp.inf, x.dtype)
    search = _Search(x, jnp.zeros_like(none), jnp.zeros(x.shape[:1], bool), x, none)
    search = jax.lax.fori_loop(0, settings.restarts * settings.num_steps, visit, search)

    nearer = _bisect(logits_fn, x, y, search.best, settings.bisections)
    return _first_misclassified(logits_fn, x, y, (nearer, search.best), norm)


def _bisect(logits_fn: LogitsFn, x: Array, y: Array, far: Array, bisections: int) -> Array:
    """The misclassified point of the segment from x to ``far`` next to the last halving's correct one."""

    def halve(_, segment: tuple[Array, Array]) -> tuple[Array, Array]:
        inside, outside = segment
        middle = (inside + outside) / 2
        success = _steps.is_misclassified(logits_fn(_between(x, far, middle)), y)
        return jnp.where(success, inside, middle), jnp.where(success, middle, outside)

    ends = (jnp.zeros(x.shape[:1], x.dtype), jnp.ones(x.shape[:1], x.dtype))
    _, outside = jax.lax.fori_loop(0, bisections, halve, ends)
    return _between(x, far, outside)


def _first_misclassified(
    logits_fn: LogitsFn, x: Array, y: Array, found: tuple[Array, ...], norm: float
) -> tuple[AttackResult, Float[Array, "n classes"]]:
    """The image itself or the first of ``found`` that this very pass finds misclassified, and its logits."""
    points = (x, *found)
    logits = jnp.split(logits_fn(jnp.concatenate(points)), len(points))
    chosen, chosen_logits, success = x, logits[0], _steps.is_misclassified(logits[0], y)
    for point, values in zip(points[1:], logits[1:], strict=True):
        taken = ~success & _steps.is_misclassified(values, y)
        chosen = jnp.where(_steps.spread(taken, x), point, chosen)
        chosen_logits = jnp.where(taken[:, None], values, chosen_logits)
        success |= taken
    distance = jnp.where(success, _steps.image_norm(chosen - x, norm), jnp.inf)
    return AttackResult(chosen, _steps.margins(chosen_logits, y), success, distance), chosen_logits


def _between(x: Array, other: Array, fraction: Float[Array, " n"]) -> Array:
    """The point of the segment; at 1 exactly its end, so that a successful end stays one."""
    fraction = _steps.spread(fraction, x)
    return jnp.where(fraction < 1, x + fraction * (other - x), other)


def _class_gradient(
    logits_fn: LogitsFn, x: Array, y: Array, classes: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, "n ..."]]:
    """f_j - f_y at x for one class j an image, and its gradient in x."""

    def total(points: Array) -> tuple[Array, Array]:
        logits = logits_fn(points)
        pair = jnp.take_along_axis(logits, jnp.stack([classes, y.astype(classes.dtype)], 1), 1)
        values = pair[:, 0] - pair[:, 1]
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(x)
    return values, gradient


def _linearised_boundaries(
    logits_fn: LogitsFn, x: Array, y: Array, settings: _Settings
) -> tuple[Int[Array, "candidates n"], Float[Array, "candidates n"]]:
    """Classes by the distance of their linearised boundary, nearest first; ∞ where there is no slope."""
    logits = logits_fn(x)
    rivals = jnp.where(jax.nn.one_hot(y, logits.shape[1], dtype=bool), -jnp.inf, logits)
    _, classes = jax.lax.top_k(rivals, min(settings.candidates, logits.shape[1] - 1))

    def distance(rival: Int[Array, " n"]) -> Float[Array, " n"]:
        values, gradient = _class_gradient(logits_fn, x, y, rival)
        gradient = _steps.open_gradient(gradient, x, settings.bounds)
        slope = _steps.image_norm(gradient, _steps.dual(settings.norm))
        away = jnp.abs(values) / jnp.where(slope > 0, slope, 1)
        return jnp.where((slope > 0) & jnp.isfinite(away), away, jnp.inf).astype(x.dtype)

    distances = jax.lax.map(distance, classes.T)
    order = jnp.argsort(distances, axis=0)
    return jnp.take_along_axis(classes.T, order, 0), jnp.take_along_axis(distances, order, 0)
