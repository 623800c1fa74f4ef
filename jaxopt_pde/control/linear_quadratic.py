"""The control of a quadratic loss with a quadratic terminal cost: exact in any dimension, indefinite losses included.

In the eigenbasis of A, with the time to go τ = horizon − time and the terminal cost divided by the control cost c, the
uncontrolled diffusion is Gaussian: it ends at N(m, T W) with

    m = e^{−Aτ} x − (∫₀^τ e^{−As} ds) ℓ,      W = ∫₀^τ e^{−2As} ds.

Cole-Hopf is then a Gaussian integral. With the costate p = (I + QW)⁻¹ (Qm + q) and the end point y = m − Wp of the
optimally controlled mean,

    u/c = ½ y'Qy + q·y + ½ p'Wp + (T/2) log det(I + QW),      ∇u/c = e^{−Aτ} p.

No term cancels another where Q ≥ 0, and A → 0 needs no special case but the integrals' own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .. import _validate

__all__ = ["LinearQuadratic", "linear_quadratic"]


class LinearQuadratic(NamedTuple):
    """The exact solution of a linear-quadratic control problem.

    Attributes:
        value: ``(x, time) -> u(x, time)`` [...] for points x [..., d] (a scalar x stands for d = 1). Unit [loss].
        control: ``(x, time, key=None) -> α(x, time)``, shaped like x; 0 for time > horizon. Unit [loss/param].
    """

    value: Callable[..., Array]
    control: Callable[..., Array]


class _Modes(NamedTuple):
    """The problem in the eigenbasis of A: scalars, [d], or [d, d] for a terminal Hessian that stays a matrix."""

    rates: Any  # eigenvalues of A
    basis: Any | None  # its eigenvectors, columns; None for the identity
    terminal: Any  # Q/c
    linear: Any  # ℓ
    terminal_linear: Any  # q/c


def linear_quadratic(
    hessian: ArrayLike,
    terminal_hessian: ArrayLike,
    *,
    horizon: ArrayLike,
    temperature: ArrayLike,
    linear: ArrayLike | None = None,
    terminal_linear: ArrayLike | None = None,
    control_cost: ArrayLike = 1.0,
) -> LinearQuadratic:
    r"""Solves the control problem of f(x) = ½ x'Ax + ℓ·x with terminal cost V(x) = ½ x'Qx + q·x in closed form.

    The descent dx = −∇f ds − α ds + √T dW is steered to make E[V(x(horizon)) + (c/2) ∫ |α|² ds] least. The value u
    solves

        −u_s = −∇f·∇u − |∇u|²/(2c) + (T/2) Δu,      u(·, horizon) = V,      α = ∇u/c,

    and stays quadratic, ∇²u = P with −P_s = −(AP + PA) − P²/c, a Riccati equation solved here by eigendecomposition of
    A and one Cholesky factor for each time asked for. u/c has the same temperature and the terminal cost V/c.

    Args:
        hessian: A, symmetric: a number (times the identity), a diagonal [d] or a matrix [d, d]. It may be indefinite
            or 0. Unit [loss/param²].
        terminal_hessian: Q, likewise. It may be indefinite as long as the value stays finite, see ``Raises``.
        horizon: the time > 0 at which V stands, in [param²/loss].
        temperature: T ≥ 0, in [loss]. It adds (cT/2) log det(I + QW/c) to u and leaves α as it is.
        linear: ℓ, a number (the same in every coordinate) or [d]; None means 0. Note the sign: ∇f = Ax + ℓ.
            Unit [loss/param].
        terminal_linear: q, likewise.
        control_cost: c > 0, without unit.

    Returns:
        :class:`LinearQuadratic` with ``value(x, time)`` and ``control(x, time, key=None)``, both exact for every time
        ≤ horizon up to rounding in the dtype of x, and differentiable in x, in times < horizon and in traced
        coefficients (in a matrix A where no two eigenvalues are equal; else that derivative is NaN). Past the horizon
        the value is V and the control 0. With A and Q diagonal (or Q a number) no factorisation is needed and d may be
        in the millions. A ``value`` asked for at negative times, before the interval checked here, is NaN where it
        does not exist.

    Raises:
        ValueError, TypeError: x not real and floating, a matrix that is not symmetric, shapes that do not fit, an
            entry that is not finite, a setting out of range, or a Q so negative that the value is −∞ within the
            horizon: finite means I + QW/c > 0 there, and the message says from which time to go. Traced coefficients
            are not looked at; they give NaN.

    Example:
        f = 0, V = ½ x², c = 1: the value is Burgers' x²/(2(1 + τ)) plus (T/2) log(1 + τ), with τ = 1 at time 0:

        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import control
        >>> exact = control.linear_quadratic(0.0, 1.0, horizon=1.0, temperature=2.0)
        >>> x = jnp.array([2.0])
        >>> print(f"{exact.value(x, 0.0):.4f} {exact.control(x, 0.0)[0]:.4f}")
        1.6931 1.0000

    References:
        Fleming & Rishel 1975, Deterministic and Stochastic Optimal Control, chapter VI. The cancellation-free form by
        the costate is our own derivation.
    """
    _validate.check_positive("horizon", horizon)
    _validate.check_nonnegative("temperature", temperature)
    _validate.check_positive("control_cost", control_cost)
    given = {
        "hessian": hessian,
        "terminal_hessian": terminal_hessian,
        "linear": 0.0 if linear is None else linear,
        "terminal_linear": 0.0 if terminal_linear is None else terminal_linear,
    }
    concrete = not any(_is_traced(v) for v in (*given.values(), horizon, control_cost))
    numpy = np if concrete else jnp  # float64 whatever the dtype of x, where nothing is traced
    arrays = {
        name: np.asarray(value, np.float64) if concrete else jnp.asarray(value)
        for name, value in given.items()
    }
    dimension = _check_shapes(arrays)
    if concrete:
        _check_entries(arrays)
        horizon, control_cost = float(horizon), float(control_cost)
    modes = _to_eigenbasis(**arrays, control_cost=control_cost, dimension=dimension, numpy=numpy)
    if concrete:
        _check_finite_value(modes, horizon)

    def prepare(x, time):
        if not jax.tree_util.all_leaves([x]):
            msg = (
                f"x must be one array [..., d], got {x!r}: flatten a tree with jax.flatten_util.ravel_pytree."
            )
            raise TypeError(msg)
        x = jnp.asarray(x)
        _validate.check_float_tree("x", x)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        points = jnp.atleast_1d(x).astype(dtype)
        if dimension not in (None, points.shape[-1]):
            msg = f"x must have shape [..., {dimension}], got {x.shape}."
            raise ValueError(msg)
        cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), modes)
        to_go = jnp.asarray(horizon, dtype) - jnp.asarray(time, dtype)
        return x, points, cast, to_go

    def value(x, time):
        x, points, cast, to_go = prepare(x, time)
        at = lambda point: _value(
            cast, point, jnp.where(to_go < 0, 0, to_go), jnp.asarray(temperature, point.dtype)
        )
        return jnp.asarray(control_cost, points.dtype) * jnp.vectorize(at, signature="(d)->()")(points)

    def control(x, time, key=None):
        del key
        x, points, cast, to_go = prepare(x, time)
        at = lambda point: _control(cast, point, jnp.where(to_go < 0, 0, to_go))
        alpha = jnp.vectorize(at, signature="(d)->(d)")(points)
        return jnp.where(to_go < 0, 0, alpha).reshape(x.shape).astype(x.dtype)

    return LinearQuadratic(value, control)


def _is_traced(value) -> bool:
    return isinstance(value, jax.core.Tracer)


def _check_shapes(arrays) -> int | None:
    """The dimension d that the arguments agree on; None where all of them are numbers."""
    dimension, named = None, ""
    for name, array in arrays.items():
        if array.ndim > (2 if "hessian" in name else 1) or (
            array.ndim == 2 and array.shape[0] != array.shape[1]
        ):
            expected = "a number, [d] or [d, d]" if "hessian" in name else "a number or [d]"
            msg = f"{name} must be {expected}, got shape {array.shape}."
            raise ValueError(msg)
        if array.ndim and dimension not in (None, array.shape[0]):
            msg = f"{name} has d = {array.shape[0]}, but {named} has d = {dimension}."
            raise ValueError(msg)
        if array.ndim and dimension is None:
            dimension, named = array.shape[0], name
    return dimension


def _check_entries(arrays) -> None:
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            msg = f"{name} must be finite, got {array!r}."
            raise ValueError(msg)
        if array.ndim == 2:
            gap = np.max(np.abs(array - array.T), initial=0.0)
            # Entries made in float32 are symmetric up to its rounding only.
            if gap > 1e-5 * np.max(np.abs(array), initial=0.0):
                msg = (
                    f"{name} must be symmetric, got entries that differ from their mirror image by {gap:.3g}."
                )
                raise ValueError(msg)


def _to_eigenbasis(
    *, hessian, terminal_hessian, linear, terminal_linear, control_cost, dimension, numpy
) -> _Modes:
    terminal, terminal_linear = terminal_hessian / control_cost, terminal_linear / control_cost
    if terminal.ndim == 2:
        terminal = (terminal + terminal.T) / 2
    if hessian.ndim < 2:
        return _Modes(hessian, None, terminal, linear, terminal_linear)
    rates, basis = numpy.linalg.eigh((hessian + hessian.T) / 2)
    if terminal.ndim:
        matrix = terminal if terminal.ndim == 2 else numpy.diag(terminal)
        terminal = basis.T @ matrix @ basis
    rotate = lambda v: basis.T @ numpy.broadcast_to(v, (dimension,))
    return _Modes(rates, basis, terminal, rotate(linear), rotate(terminal_linear))


def _check_finite_value(modes: _Modes, horizon: float) -> None:
    """Raises if I + QW stops being positive before the horizon; W grows with the time to go, so it stays stopped."""

    def margin(to_go):
        """The least eigenvalue of I + √W Q √W."""
        with np.errstate(over="ignore", invalid="ignore"):  # W may overflow: the value is gone then
            spread = np.asarray(_integrated_decay(2 * modes.rates, to_go, np))
            if modes.terminal.ndim < 2:
                return np.min(1 + modes.terminal * spread)
            root = np.sqrt(np.broadcast_to(spread, modes.terminal.shape[:1]))
            scaled = root[:, None] * modes.terminal * root[None, :]
        return np.linalg.eigvalsh(np.eye(len(root)) + scaled)[0] if np.all(np.isfinite(scaled)) else -np.inf

    if margin(horizon) > 0:
        return
    lower, upper = 0.0, horizon
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if margin(middle) > 0 else (lower, middle)
    msg = (
        f"The value is −∞ from {upper:.6g} before the horizon on: a descent that diverges gains more from "
        f"terminal_hessian than its control costs. Shorten horizon={horizon:.6g} below that, raise control_cost or "
        "make terminal_hessian less negative."
    )
    raise ValueError(msg)


def _integrated_decay(rates, to_go, numpy=jnp):
    """∫₀^τ e^{−λs} ds = τ (1 − e^{−z})/z, z = λτ: a series around 0, so that derivatives in λ are right there too."""
    z = rates * to_go
    near = numpy.abs(z) < 1e-2
    safe, small = numpy.where(near, 1, z), numpy.where(near, z, 0)
    series = 1 - small / 2 * (1 - small / 3 * (1 - small / 4 * (1 - small / 5 * (1 - small / 6))))
    return to_go * numpy.where(near, series, -numpy.expm1(-safe) / safe)


def _end(modes: _Modes, x, to_go):
    """Mean m of the uncontrolled end, W per mode, e^{−Aτ} per mode and the costate p, all in the eigenbasis."""
    rates = jnp.broadcast_to(modes.rates, x.shape)
    start = x if modes.basis is None else modes.basis.T @ x
    decay, spread = jnp.exp(-rates * to_go), _integrated_decay(2 * rates, to_go)
    mean = decay * start - _integrated_decay(rates, to_go) * modes.linear
    force = _times(modes.terminal, mean) + modes.terminal_linear
    if modes.terminal.ndim < 2:
        return mean, spread, decay, force / (1 + modes.terminal * spread), None
    # √W p = (I + √W Q √W)⁻¹ √W (Qm + q); at τ = 0 the matrix is I, and any scale will do.
    root = jnp.sqrt(spread)
    scale = jnp.where(root > 0, root, 1)
    factor = jnp.linalg.cholesky(
        jnp.eye(x.size, dtype=x.dtype) + root[:, None] * modes.terminal * root[None, :]
    )
    return mean, spread, decay, jax.scipy.linalg.cho_solve((factor, True), scale * force) / scale, factor


def _times(matrix, vector):
    return matrix @ vector if matrix.ndim == 2 else matrix * vector


def _value(modes: _Modes, x, to_go, temperature):
    mean, spread, _, costate, factor = _end(modes, x, to_go)
    end = mean - spread * costate
    cost = jnp.sum(end * (_times(modes.terminal, end) / 2 + modes.terminal_linear))
    effort = jnp.sum(spread * costate**2) / 2
    if factor is None:
        log_det = jnp.sum(jnp.log1p(modes.terminal * spread))
    else:
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return cost + effort + temperature * log_det / 2


def _control(modes: _Modes, x, to_go):
    _, _, decay, costate, _ = _end(modes, x, to_go)
    alpha = decay * costate
    return alpha if modes.basis is None else modes.basis @ alpha
