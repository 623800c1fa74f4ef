"""Replicas of a model on a leading axis, coupled to their mean: Elastic-SGD and Parle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key

from .. import _validate
from .._arithmetic import cast_up
from .._noise import NoiseLaw
from .._sharding import indices_along
from .._typing import Params, ScalarOrSchedule
from ..smoothing._kernel import scalar_dtype
from ..smoothing.langevin import Estimator, LangevinSettings, langevin
from ._relaxed import RelaxedState, evaluate, outer_sgd, relaxed_descent
from .local_entropy import check_settings

__all__ = ["ElasticState", "ParleState", "consensus", "elastic_coupling", "parle"]


class ElasticState(NamedTuple):
    """State of :func:`elastic_coupling`: two scalars.

    Attributes:
        count: updates so far (int32); schedules read it.
        notfinite_count: gradients of single replicas that were not finite and became zeros (int32).
    """

    count: Int[Array, ""]
    notfinite_count: Int[Array, ""]


class ParleState(NamedTuple):
    """State of :func:`parle`: three scalars beside the state of the outer momentum.

    Attributes:
        outer_count: updates so far (int32); schedules read it.
        key: the constant key.
        notfinite_count: updates skipped because an estimate of ∇u was not finite (int32).
        outer: state of the outer optimiser, with the axis of the replicas.
    """

    outer_count: Int[Array, ""]
    key: Key[Array, ""]
    notfinite_count: Int[Array, ""]
    outer: optax.OptState


def elastic_coupling(coupling_time: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the replicas of a model together: first in an ``optax.chain``, before any optimiser.

    Every leaf of params and gradients carries the replicas i = 1 … R on its first axis. Emitted is

        gᵢ + (xᵢ − x̄)/ρ,      x̄ = (x₁ + … + x_R)/R,

    the gradient of f(x₁) + … + f(x_R) + Σᵢ|xᵢ − x̄|²/(2ρ). The pulls add up to zero: under a linear optimiser (SGD
    with momentum) x̄ takes the mean of the gradients, and where those are linear it moves as if there was no pull.

    Args:
        coupling_time: ρ > 0 in [param²/loss], a number or a schedule of updates; ``math.inf``, also as the value of
            a schedule, for no pull. With the step h of the optimiser keep h/ρ below 1.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.ElasticState`.
        :func:`jaxopt_pde.eval_params` gives x̄, without the axis of the replicas. A replica whose gradient is not
        finite gets zeros, and is counted in ``notfinite_count``; the others go on. With the axis sharded over a
        mesh the mean is one all-reduce of the size of one model, and the count one number.

    Raises:
        ValueError, TypeError: for a coupling time out of range, missing params, leaves without a common first axis, or
            params that are masked or not real and floating; the message names it.

    Good values:
        ρ ten to a hundred times the learning rate. For Elastic-SGD with a centre variable of its own (a slow running
        mean of the replicas, not their mean of now) use :func:`two_time_scale` with ``num_particles=R``.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> tx = optax.chain(jaxopt_pde.elastic_coupling(1.0), optax.sgd(0.1))
        >>> params = jnp.array([[1.0, -2.0], [3.0, 4.0]])  # two replicas of a model with two parameters
        >>> state = tx.init(params)
        >>> grads = jax.vmap(jax.grad(lambda p: jnp.sum(p**2) / 2))(params)  # a minibatch for each, in training
        >>> updates, state = tx.update(grads, state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> print(params, jaxopt_pde.eval_params(state, params))
        [[ 1.  -1.5]
         [ 2.6  3.3]] [1.8 0.9]

    References:
        Zhang, Choromanska and LeCun 2015, Deep learning with Elastic Averaging SGD, arXiv:1412.6651.
    """
    _validate.check_positive("coupling_time", coupling_time, or_infinite=True)

    def init(params: Params) -> ElasticState:
        _num_replicas(params)
        return ElasticState(*(jnp.zeros([], jnp.int32) for _ in range(2)))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            msg = "elastic_coupling needs params: call tx.update(grads, state, params)."
            raise ValueError(msg)
        _num_replicas(params)
        _validate.check_same_tree("updates", updates, params)
        coupled = _couple(updates, params, evaluate(coupling_time, state.count))
        broken = ~_finite_replicas(coupled)
        emitted = _zero_replicas(broken, coupled, updates)
        refused = jnp.sum(broken, dtype=jnp.int32)
        return emitted, ElasticState(optax.safe_increment(state.count), state.notfinite_count + refused)

    return optax.GradientTransformationExtraArgs(init, update)


def parle(
    learning_rate: ScalarOrSchedule,
    smoothing_time: ScalarOrSchedule,
    inner_learning_rate: ScalarOrSchedule,
    *,
    coupling_time: ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    temperature: ScalarOrSchedule = 1e-8,
    num_steps: int = 20,
    averaging: float | None = None,
    burn_in: int | None = None,
    estimator: Estimator = "displacement",
    inner_momentum: float = 0.0,
    noise: NoiseLaw = "rademacher",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Parle: replicas that each run Entropy-SGD, coupled to their mean once every ``num_steps`` gradients.

    Every leaf of params carries the replicas i = 1 … R on its first axis. One update is

        xᵢ ← xᵢ − h (∇̂u(xᵢ, t) + (xᵢ − x̄)/ρ),      x̄ = (x₁ + … + x_R)/R,

    with ∇̂u from one Langevin chain of ``num_steps`` steps around each xᵢ, as in :func:`entropy_sgd`: descent on
    u(x₁, t) + … + u(x_R, t) + Σᵢ|xᵢ − x̄|²/(2ρ). The cost is R·L gradients, all R at once; x̄ is formed once an
    update, so replicas on R devices exchange one model per L gradients and nothing in between.

    The paper writes the step as x ← x − η (x − z) − (η/ρ') (x − x̄), z the mean of the chain and γ = t dropped from
    the first term: there h = η t, and ρ = ρ' t. Its scoping shrinks γ and ρ' by a constant factor at every update
    down to a floor: hand ``optax.exponential_decay(…, end_value=…)`` to both times.

    Args:
        learning_rate: outer step h ≥ 0 in [param²/loss]; h ≤ 1/(1/t + 1/ρ) never increases the objective.
        smoothing_time: t > 0 in [param²/loss].
        inner_learning_rate: Langevin step ε > 0 in [param²/loss].
        coupling_time: ρ > 0 in [param²/loss], a number or a schedule of updates; ``math.inf`` for no coupling.
        momentum: decay of the outer momentum, None for none.
        nesterov: Nesterov's form of the outer momentum.
        weight_decay: λ ≥ 0 in [loss/param²], on the anchors xᵢ.
        temperature: T ≥ 0 in [loss]. The Python number 0 leaves the noise out of the program.
        num_steps: L, inner steps (static).
        averaging: rule of the running mean, as are the next two in :func:`local_entropy_gradient`.
        burn_in: steps left out of the uniform mean.
        estimator: which estimate of ∇u.
        inner_momentum: heavy ball within an update, in [0, 1) (static).
        noise: law of the increments, independent over the replicas.
        accumulator_dtype: dtype of the inner loop and of the outer momentum.
        key: integer seed or typed key. For independent copies ``vmap`` over the key given *here*.

    Extra args of ``update``:
        grad_fn: ``(params, InnerStep) -> gradient`` of *one* replica, params without the axis of the replicas;
            called L times, batched over the replicas. ``InnerStep.chain`` is the replica 0 … R − 1 and
            ``InnerStep.step`` the inner step; ``InnerStep.batch(batches)`` gives each its own.
        value_fn: ``params -> loss`` of one replica, used when ``grad_fn`` is missing.

    Returns:
        A ``GradientTransformationExtraArgs`` with state :class:`~jaxopt_pde.optimizers.ParleState`.
        :func:`jaxopt_pde.eval_params` gives x̄, without the axis of the replicas. If the estimate of any replica is
        not finite, the update of all is zero, counted in ``notfinite_count``, and the outer state stays. With the axis
        sharded over a mesh an update is one all-reduce, of one model and a number.

    Raises:
        ValueError, TypeError: at construction for a number out of range; in ``update`` for missing ``params`` or
            ``grad_fn``; for leaves without a common first axis, and params that are masked or not real and
            floating; the message names it.

    Good values:
        Those of :func:`entropy_sgd`, ρ from t to 100 t. To spread the replicas over devices shard the first axis of
        params, and axis 1 of ``batches`` the same way: looked up by ``InnerStep.batch`` they stay where they are.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxopt_pde
        >>> loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)  # least squares: p = (0.3, 0, 0)
        >>> tx = jaxopt_pde.parle(1.0, 1.0, 0.05, coupling_time=10.0, temperature=1e-5)
        >>> params = jax.random.normal(jax.random.key(7), (4, 3))  # four replicas
        >>> opt_state = tx.init(params)
        >>> @jax.jit
        ... def train_step(params, opt_state, batches):  # leading axes [num_steps, replicas]
        ...     grad_fn = lambda p, s: jax.grad(loss)(p, s.batch(batches))
        ...     updates, opt_state = tx.update(params, opt_state, params, grad_fn=grad_fn)
        ...     return optax.apply_updates(params, updates), opt_state
        >>> for i in range(8):
        ...     batches = jax.random.normal(jax.random.key(i), (20, 4, 8, 3)).at[..., 0].add(3.0)
        ...     params, opt_state = train_step(params, opt_state, batches)
        >>> print(jnp.abs(jaxopt_pde.eval_params(opt_state, params) - jnp.array([0.3, 0.0, 0.0])).max() < 0.05)
        True

    References:
        Chaudhari, Baldassi, Zecchina, Soatto, Talwalkar and Oberman 2017, Parle: parallelizing stochastic gradient
        descent, arXiv:1707.00424.
    """
    settings = LangevinSettings(
        num_steps,
        averaging=averaging,
        burn_in=burn_in,
        estimator=estimator,
        noise=noise,
        accumulator_dtype=accumulator_dtype,
    )
    check_settings(smoothing_time, inner_learning_rate, temperature, inner_momentum, settings)
    _validate.check_positive("coupling_time", coupling_time, or_infinite=True)

    def estimate(grad_fn, params, key, count):
        time, step_size, heat = (
            evaluate(value, count) for value in (smoothing_time, inner_learning_rate, temperature)
        )

        def one(replica, params):
            return langevin(
                lambda p, step: grad_fn(p, step._replace(chain=replica)),
                params,
                jax.random.fold_in(key, replica),
                smoothing_time=time,
                step_size=step_size,
                temperature=heat,
                momentum=inner_momentum,
                **settings._asdict(),
            )

        _num_replicas(params)
        leaves = jax.tree.leaves(params)
        replicas = indices_along(leaves[0]) if leaves else jnp.arange(0)
        smoothed = jax.vmap(one)(replicas, params)
        # Counted before the coupling and as a sum in the dtype of x̄: spread over devices both are one all-reduce.
        refused = jnp.sum(~_finite_replicas((params, smoothed.gradient)), dtype=scalar_dtype(params))
        coupled = _couple(smoothed.gradient, params, evaluate(coupling_time, count))
        overflown = ~_finite_replicas(coupled)  # as the pull between finite params may be
        return smoothed._replace(
            gradient=_zero_replicas(overflown, coupled, smoothed.gradient),
            num_gradients=jnp.sum(smoothed.num_gradients),
            info={"finite": refused == 0},
        )

    descent = relaxed_descent(
        "parle", estimate, outer_sgd(learning_rate, momentum, nesterov, weight_decay, accumulator_dtype), key
    )

    def init(params: Params) -> ParleState:
        _num_replicas(params)
        return ParleState(*descent.init(params))

    def update(updates, state, params=None, **extra_args):
        updates, state = descent.update(updates, RelaxedState(*state), params, **extra_args)
        return updates, ParleState(*state)

    return optax.GradientTransformationExtraArgs(init, update)


def consensus(params: Params) -> Params:
    """The mean over the first axis of every leaf, formed in at least float32, in the dtype of ``params``."""
    return jax.tree.map(lambda x: jnp.mean(cast_up(x), axis=0).astype(x.dtype), params)


def _couple(gradient: Params, params: Params, coupling_time) -> Params:
    """The gradient with the pull, g + (x − x̄)/ρ, in at least float32."""
    rate = 1 / jnp.asarray(coupling_time, scalar_dtype(params))

    def pull(g, x):
        x = cast_up(x)
        return g.astype(x.dtype) + (x - jnp.mean(x, axis=0, keepdims=True)) * rate.astype(x.dtype)

    return jax.tree.map(pull, gradient, params)


def _finite_replicas(tree: Params) -> Bool[Array, " replicas"]:
    flags = [jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags), axis=0)


def _zero_replicas(which: Bool[Array, " replicas"], tree: Params, like: Params) -> Params:
    """The tree in the dtypes of ``like``, zero at some replicas."""
    return jax.tree.map(
        lambda leaf, other: jnp.where(which.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf).astype(other.dtype),
        tree,
        like,
    )


def _num_replicas(params: Params) -> int:
    """The common first axis of all leaves; raises where there is none."""
    _validate.check_float_tree("params", params)
    sizes = set()
    for path, leaf in jax.tree.leaves_with_path(params):
        sizes.add(jnp.shape(leaf)[:1])
        if len(sizes) > 1 or () in sizes or (0,) in sizes:
            msg = (
                f"every leaf of params must carry the replicas on its first axis: params"
                f"{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}."
            )
            raise ValueError(msg)
    return sizes.pop()[0] if sizes else 0
