"""FGSM and projected gradient ascent: is there a misclassified image in the ball?"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .. import _validate
from . import _steps
from ._attack_arguments import (
    AttackResult,
    LogitsFn,
    Model,
    check_attack,
    image_keys,
    per_image,
    split_model,
)
from ._checks import check_norm, warn_if_nan, warn_if_probabilities

__all__ = ["fgsm", "pgd"]


def fgsm(
    logits_fn: LogitsFn,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    key: Key[Array, ""],
    *,
    radius: float | Float[Array, " n"],
    norm: float = math.inf,
    bounds: tuple[float, float] = (0.0, 1.0),
    loss: str = "cross_entropy",
) -> AttackResult:
    """The fast gradient attack: one step to the edge of the ball, clip(x + radius·a), a = argmax_{‖a‖ₚ=1} a·∇ℓ(x).

    a is sign(∇ℓ) for p = ∞ and ∇ℓ/‖∇ℓ‖₂ for p = 2; for p = 1 the signs of the largest hundredth of the entries.
    By the expansion max_{‖a‖ₚ≤ε} ℓ(x + a) = ℓ + ε ‖∇ℓ‖_q + O(ε²) it is the first-order maximiser. See :func:`pgd`
    for what the arguments, the result and the compiled program share.

    Args:
        logits_fn: images [n, …] to logits [n, classes], not probabilities.
        x: images [n, …], floating, inside ``bounds``.
        y: true labels [n], integers of [0, classes).
        key: not used by the method; taken so that the attacks can be exchanged.
        radius: of the ball in the units of ``x``, a scalar or [n].
        norm: 1, 2 or ∞.
        bounds: (low, high) of the box of all images, static.
        loss: what is raised: ``"cross_entropy"`` or ``"margin"``.

    Returns:
        :class:`AttackResult`: per image the better of the step and the image itself.

    Raises:
        ValueError, TypeError: as in :func:`pgd`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxopt_pde
        >>> linear = lambda x: jnp.stack([x[:, 0], x[:, 1]], -1)
        >>> x, y = jnp.array([[0.7, 0.5]]), jnp.array([0])
        >>> jaxopt_pde.robustness.fgsm(linear, x, y, jax.random.key(0), radius=0.15).success
        Array([ True], dtype=bool)

    References:
        Goodfellow, Shlens & Szegedy 2015, Explaining and harnessing adversarial examples, arXiv:1412.6572.
    """
    return _attack(logits_fn, x, y, key, radius, None, norm, bounds, 0, 0, loss)


def pgd(
    logits_fn: LogitsFn,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    key: Key[Array, ""],
    *,
    radius: float | Float[Array, " n"],
    norm: float = math.inf,
    num_steps: int = 40,
    step_size: float | Float[Array, " n"] | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    loss: str = "cross_entropy",
) -> AttackResult:
    """Projected gradient ascent on the loss in the ball {‖z - x‖ₚ ≤ radius} and the box, from random starts.

    z ← clip(Π(z + step_size·a)), a the steepest direction of :func:`fgsm` at z without the entries that push
    against the box, Π the projection onto the ball. What is returned is the best point visited, success first,
    then loss; the clean image and the FGSM point are visited too, so PGD succeeds wherever FGSM does. An image
    that is misclassified from the start is returned as it is: success at distance 0.

    One compiled program for all images, steps and restarts. A second call with the same function and shapes
    compiles nothing, whatever ``radius``, ``step_size`` and the weights are, if the weights come through
    ``functools.partial(apply, params)``: arrays among its arguments are arguments of the program. A lambda that
    closes over them compiles anew for every lambda and stores the weights in the program. Inside a caller's
    ``jit`` it is traced like any function; values are then not checked. Gradients stop at the result.

    Args:
        logits_fn: images [n, …] to logits [n, classes], not probabilities; each image on its own (BatchNorm in
            evaluation mode).
        x: images [n, …], floating, inside ``bounds``.
        y: true labels [n], integers of [0, classes).
        key: one key, folded with the index of each image, or n keys, one an image: then any splitting of the
            images with their keys gives the same attack, to the rounding of the model.
        radius: of the ball in the units of ``x``, a scalar or [n]; traced, so a curve over radii is one program.
        norm: 1, 2 or ∞.
        num_steps: gradient steps of each restart (static).
        step_size: norm of a step, a scalar or [n]; None means 2.5·radius/num_steps, which can cross the ball.
        restarts: random starts, uniform in the ball (static). More of them never do worse.
        bounds: (low, high) of the box of all images, static; infinite for none.
        loss: what is raised. ``"cross_entropy"`` follows the direction of its gradient, computed so that it does
            not vanish on saturated logits; ``"margin"`` is max_{j≠y} fⱼ - f_y.

    Returns:
        :class:`AttackResult`, [n] each. Where a logit is NaN the success is False; x is always finite.

    Raises:
        ValueError: a radius or step ≤ 0, an unknown norm or loss, images outside the box (also NaN), labels out
            of range, or logits that are not [n, classes ≥ 2].
        TypeError: images that are not floating, labels that are not integers, counts that are not.

    Warns:
        UserWarning: the logits look like probabilities, or are NaN. Looking waits for the result; inside ``jit``
            nothing looks.

    Good values:
        40 steps with one restart for curves, 10 for training, 100 with 10 restarts for a claim of robustness.

    Example:
        The distance of a point to the other side of x₀ = x₁ is 0.1 in ℓ∞:

        >>> import jax, jax.numpy as jnp, jaxopt_pde
        >>> linear = lambda x: jnp.stack([x[:, 0], x[:, 1]], -1)
        >>> x, y = jnp.array([[0.7, 0.5]]), jnp.array([0])
        >>> attack = lambda r: jaxopt_pde.robustness.pgd(linear, x, y, jax.random.key(0), radius=r, norm=jnp.inf)
        >>> bool(attack(0.09).success[0]), bool(attack(0.11).success[0])
        (False, True)

    References:
        Madry et al. 2018, Towards deep learning models resistant to adversarial attacks, arXiv:1706.06083. For ℓ1,
        Tramèr & Boneh 2019, arXiv:1904.13000 (SLIDE). The loss without saturation is our own derivation.
    """
    _validate.check_count("num_steps", num_steps)
    _validate.check_count("restarts", restarts)
    return _attack(logits_fn, x, y, key, radius, step_size, norm, bounds, num_steps, restarts, loss)


def _attack(
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    key: Any,
    radius: Any,
    step_size: Any,
    norm: Any,
    bounds: Any,
    num_steps: int,
    restarts: int,
    loss: str,
) -> AttackResult:
    norm = check_norm(norm)
    _validate.check_choice("loss", loss, _steps.LOSSES)
    x, y, bounds = check_attack(logits_fn, x, y, bounds)
    keys = image_keys(key, len(x))
    radius = per_image("radius", radius, x)
    step = 2.5 * radius / max(num_steps, 1) if step_size is None else per_image("step_size", step_size, x)
    model, arrays = split_model(logits_fn)
    result, logits = _run(
        arrays,
        x,
        y,
        keys if restarts else None,
        radius,
        step,
        model=model,
        norm=norm,
        bounds=bounds,
        num_steps=num_steps,
        restarts=restarts,
        loss=loss,
    )
    warn_if_probabilities(logits, stacklevel=4)
    warn_if_nan(logits, stacklevel=4)
    return result


@functools.partial(jax.jit, static_argnames=("model", "norm", "bounds", "num_steps", "restarts", "loss"))
def _run(
    arrays: list,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    keys: Key[Array, " n"] | None,
    radius: Float[Array, " n"],
    step_size: Float[Array, " n"],
    *,
    model: Model,
    norm: float,
    bounds: tuple[float, float],
    num_steps: int,
    restarts: int,
    loss: str,
) -> tuple[AttackResult, Float[Array, "n classes"]]:
    """One flat loop of gradients: the image, the FGSM point, then num_steps + 1 points of each restart.

    The last point needs no gradient: the pass that recomputes the success of the best point evaluates it too.
    """
    arrays, x, radius, step_size = jax.lax.stop_gradient((arrays, x, radius, step_size))
    logits_fn = model.bind(arrays)

    def total(points: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(points)
        values = _steps.attack_loss(logits, y, loss)
        return values.sum(), (values, _steps.is_misclassified(logits, y))

    def better(point, values, success, best):
        _, best_values, best_success, settled = best
        wins = (success & ~best_success) | ((success == best_success) & (values > best_values))
        wins &= ~settled
        return (
            jnp.where(_steps.spread(wins, x), point, best[0]),
            jnp.where(wins, values, best_values),
            best_success | (success & ~settled),
            settled,
        )

    def visit(index: Array, carry: tuple) -> tuple:
        point, best = carry
        gradient, (values, success) = jax.grad(total, has_aux=True)(point)
        best = better(point, values, success, best)
        # Misclassified from the start: nothing replaces the image.
        best = (*best[:3], jnp.where(index == 0, success, best[3]))
        gradient = _steps.open_gradient(gradient, point, bounds)
        length = jnp.where(index == 0, radius, step_size)
        moved = point + _steps.spread(length, x) * _steps.ascent_direction(gradient, norm)
        moved = _steps.project(moved, x, radius, norm, bounds)
        if not restarts:
            return moved, best

        def start() -> Array:
            restart = (index - 1) // (num_steps + 1)
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
            drawn = x + _steps.uniform_in_ball(own, x, radius, norm)
            return _steps.project(drawn, x, radius, norm, bounds)

        starts = (index >= 1) & ((index - 1) % (num_steps + 1) == 0)
        return jax.lax.cond(starts, start, lambda: moved), best

    nothing = jnp.zeros(x.shape[:1], bool)
    logits_dtype = jax.eval_shape(logits_fn, x).dtype
    best = (x, jnp.full(x.shape[:1], -jnp.inf, logits_dtype), nothing, nothing)
    last, best = jax.lax.fori_loop(0, 1 + restarts * (num_steps + 1), visit, (x, best))

    logits = logits_fn(jnp.concatenate([best[0], last]))
    logits_best, logits_last = jnp.split(logits, 2)
    values_last, success_last = (
        _steps.attack_loss(logits_last, y, loss),
        _steps.is_misclassified(logits_last, y),
    )
    chosen = better(last, values_last, success_last, best)[0]
    wins = jnp.any(chosen.reshape(len(x), -1) != best[0].reshape(len(x), -1), -1)
    logits = jnp.where(wins[:, None], logits_last, logits_best)
    values = _steps.attack_loss(logits, y, loss)
    if loss == "cross_entropy":
        values = jax.nn.softplus(values)
    success = _steps.is_misclassified(logits, y)
    return AttackResult(chosen, values, success, _steps.image_norm(chosen - x, norm)), logits
