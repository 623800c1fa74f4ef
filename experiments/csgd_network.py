"""Controlled SGD on a small network, the gradients of its rollouts counted.

scikit-learn's digits, a network with 16 hidden units, minibatches of 32. CSGD adds to each gradient the control that
would make a loss V least in ten updates: V is the loss of another minibatch, and n = 8 rollouts of 5 steps, which
share a minibatch for each step, estimate the control by a path integral. That costs n (3·5 + 1) = 128 minibatch
gradients, so there are also controls held for the ten updates of a horizon. Every point of a curve has the learning
rate, of one grid for all methods, that is best by validation error at that budget; bands are 95 % confidence
intervals over seeds.

At equal gradients CSGD loses: after about 1,000 it has 47 % of test errors, with held controls 10 to 11 %, all
baselines 3 to 4 %; after 8,000 still 8.5 %, with held controls 4.4 to 4.9 %, SGD 3.8 ± 0.6 %. At sixty updates it has
8.5 against SGD's 13.7 %, as much as momentum gives for nothing; held and plain, no gain; Entropy-SGD, at twenty
gradients each, 3.3 %.

Below is why. The minibatches' own temperature T = h tr(Σ)/d is 3·10⁻⁵ nats at h = 0.1, and there Var(V/T) leaves all
the weight to one rollout: the control is the gradient of V along a single look ahead. Without a guide a dozen of 128
share it from 0.1 nats on, and a control made with 10,000 times the measured T trains worse than none. A guide, the
best control without noise by three sweeps (paid for), brings twenty of 128 to life at 10⁻³ nats, but hardly two of
eight at the T that is real.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxopt_pde
from experiments import _run
from experiments._network_control import Rollouts, draw, estimate, make_network, probe
from experiments.quickstart import error, interval, loss, make_replicas
from experiments.relaxation_1d import spread_out
from jaxopt_pde import _validate


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    methods: tuple[str, ...] = (
        "SGD", "SGD, momentum", "Entropy-SGD", "CSGD", "CSGD, held", "CSGD, held, guided", "CSGD, held, hot",
    )  # fmt: skip
    """Which methods to run."""
    seed: int = 0
    """Seeds the split of the data; with its index, every replica's initial weights and minibatches."""
    num_seeds: int = 6
    """Replicas: initial weights and minibatches."""
    num_gradients: int = 8000
    """Minibatch gradients that each run spends."""
    num_reports: int = 24
    """Points of the curves, evenly spaced in the logarithm of the gradients spent."""
    first_report: int = 10
    """Gradients at the first of them."""
    batch_size: int = 32
    """Examples in a minibatch, drawn with replacement; in V as well."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
    """The grid of learning rates h, the same for every method; the inner one for Entropy-SGD."""
    width: int = 16
    """Hidden units."""
    horizon: int = 10
    """Updates to the horizon S = 10 h, at which V stands and a new horizon begins."""
    num_rollouts: int = 8
    """Rollouts n of an estimate of the control."""
    num_steps: int = 5
    """Euler steps L of a rollout."""
    hold: int = 10
    """Updates for which a held control is kept; a divisor of the horizon."""
    passes: int = 3
    """Rollouts without noise that make the guide."""
    heat: float = 1e4
    """Temperature of the hot rollouts over that of the minibatches."""
    probe_rate: float = 0.1
    """Learning rate of the SGD after which the noise and the effective sample sizes are measured."""
    probe_updates: int = 300
    """Updates of that SGD."""
    probe_minibatches: int = 256
    """Minibatch gradients whose covariance is the noise."""
    probe_rollouts: tuple[int, ...] = (8, 128)
    """Numbers of rollouts n for which the effective sample size is shown against T."""
    probe_temperatures: tuple[float, ...] = tuple(10.0**k for k in range(-7, 3))
    """Temperatures T of those rollouts, in units of the loss."""


NOT_REPRODUCIBLE = ("seconds",)
NOT_FINITE = (
    "effective_sample_size",
    "collapsed",
)  # NaN for what has no control, or made none since the last report

SMOKE = Config(
    methods=("CSGD, held, guided",), num_seeds=2, num_gradients=400, num_reports=2, first_report=200,
    rates=(0.1, 0.4), width=4,
    probe_updates=20, probe_minibatches=32, probe_rollouts=(8,), probe_temperatures=(1e-6, 10.0),
)  # fmt: skip


class Method(NamedTuple):
    """A method in the comparison; an update of CSGD uses the control of the last ``hold``-th one.

    Attributes:
        make: learning rate -> optax transformation, or None for CSGD.
        num_steps: gradients of one update of ``make``.
        hold: updates for one control; 1 without control.
        passes: passes of the guide.
        heat: temperature of the rollouts over that of the minibatches.
    """

    make: Callable[[Any], Any] | None
    num_steps: int = 1
    hold: int = 1
    passes: int = 0
    heat: float = 1.0

    def cost(self, config: Config) -> int:
        """Gradients of ``hold`` updates with their control, as the estimates count them."""
        if self.make is not None:
            return self.num_steps
        return (config.num_rollouts + self.passes) * (3 * config.num_steps + 1) + self.hold


def methods(config: Config) -> dict[str, Method]:
    """The methods compared, with everything fixed but the learning rate."""

    def entropy(rate):  # as in the quickstart
        settings = {"temperature": 1e-6, "num_steps": 20, "inner_momentum": 0.9}
        return jaxopt_pde.entropy_sgd(50 * rate, 50 * rate, rate, **settings)

    known = {
        "SGD": Method(optax.sgd),
        "SGD, momentum": Method(lambda rate: optax.sgd(rate, 0.9, nesterov=True)),
        "Entropy-SGD": Method(entropy, 20),
        "CSGD": Method(None),
        "CSGD, held": Method(None, hold=config.hold),
        "CSGD, held, guided": Method(None, hold=config.hold, passes=config.passes),
        "CSGD, held, hot": Method(None, hold=config.hold, heat=config.heat),
    }
    for name in config.methods:
        _validate.check_choice("methods", name, tuple(known))
    return {name: known[name] for name in config.methods}


def make_block(method: Method, network, config: Config):
    """What costs ``method.cost``: one update, or one control and the ``hold`` updates it serves."""
    gradient = jax.grad(functools.partial(loss, network))

    def plain(carry, rate, noise, minibatches, key, train):
        params, opt_state, done, tally = carry
        tx = optax.with_extra_args_support(method.make(rate))

        def at(p, step):
            chosen = minibatches[done * method.num_steps + step]
            return gradient(p, train[0][chosen], train[1][chosen])

        if method.num_steps == 1:
            updates, opt_state = tx.update(at(params, 0), opt_state, params)
        else:
            updates, opt_state = tx.update(params, opt_state, params, grad_fn=lambda p, s: at(p, s.step))
        spent = tally["spent"] + method.num_steps
        return optax.apply_updates(params, updates), opt_state, done + 1, tally | {"spent": spent}

    def controlled(carry, rate, noise, minibatches, key, train):
        params, _, done, tally = carry
        key = jax.random.fold_in(key, done)
        chosen = draw(key, 0, config.num_steps + 1, config.batch_size, len(train[1]))
        batches = lambda number: (train[0][chosen[number]], train[1][chosen[number]])
        horizon, now = config.horizon * rate, rate * (done * method.hold % config.horizon)
        settings = Rollouts(rate * noise * method.heat, config.num_rollouts, config.num_steps, method.passes)
        found = estimate(network, batches, params, now, horizon, jax.random.fold_in(key, 1), settings)
        # The noise of the minibatches is the temperature: the update adds none.
        tx = jaxopt_pde.controlled_sgd(rate, lambda p, s, key: found.control, horizon=horizon)

        def step(state, number):
            p, opt_state = state
            chosen = minibatches[done * method.hold + number]
            updates, opt_state = tx.update(gradient(p, train[0][chosen], train[1][chosen]), opt_state, p)
            return (optax.apply_updates(p, updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(method.hold))
        tally = {
            "spent": tally["spent"] + found.num_gradients + method.hold,
            "size": tally["size"] + found.effective_sample_size,
            "collapsed": tally["collapsed"] + found.collapsed,
        }
        return params, None, done + 1, tally

    return controlled if method.make is None else plain


def train(name: str, method: Method, network, replicas, noise, config: Config, session) -> _run.Arrays:
    """All rates and seeds of a method in one batched program: curves [report, rate, seed] and seconds."""
    block = make_block(method, network, config)
    budgets = np.geomspace(config.first_report, config.num_gradients, config.num_reports)
    blocks = np.diff(np.floor(budgets * (1 + 1e-12) / method.cost(config)).astype(np.int32), prepend=0)

    def start(rate, params):
        opt_state = None if method.make is None else method.make(rate).init(params)
        tally = {"spent": jnp.zeros([], jnp.int32), "size": jnp.zeros([]), "collapsed": jnp.zeros([])}
        return params, opt_state, jnp.zeros([], jnp.int32), tally

    def advance(count, carry, rate, params, minibatches, key, train, validation, test):
        carry = *carry[:3], carry[3] | {"size": jnp.zeros([]), "collapsed": jnp.zeros([])}
        more = lambda _, carry: block(carry, rate, noise, minibatches, key, train)
        carry = jax.lax.fori_loop(0, count, more, carry)
        params, _, done, tally = carry
        made = jnp.where((count > 0) & (method.make is None), count, jnp.nan)
        return carry, {
            "train_loss": loss(network, params, *train),
            "validation_error": error(network, params, *validation),
            "test_error": error(network, params, *test),
            "gradients": tally["spent"],
            "updates": done * method.hold,
            "effective_sample_size": tally["size"] / made,
            "collapsed": tally["collapsed"] / made,
        }

    rates = jnp.asarray(config.rates, jnp.float32)
    keys = jax.random.split(_run.key_for(config.seed, "control"), config.num_seeds)
    carry = jax.jit(jax.vmap(jax.vmap(start, (None, 0)), (0, None)))(rates, replicas.params)
    over_seeds = jax.vmap(advance, (None, 0, None, 0, 0, 0, None, None, None))
    over_both = jax.vmap(over_seeds, (None, 0, 0, None, None, None, None, None, None))
    arguments = (rates, *replicas[:2], keys, *replicas[2:])
    compiled = jax.jit(over_both, donate_argnums=1).lower(jnp.int32(0), carry, *arguments).compile()

    def body(carry, index):
        begin = time.perf_counter()
        carry, report = jax.block_until_ready(compiled(jnp.int32(blocks[index]), carry, *arguments))
        report = jax.device_get(report) | {"seconds": np.float64(time.perf_counter() - begin)}
        return carry, report | {
            key: report[key][0, 0] for key in ("gradients", "updates")
        }  # equal for all runs

    return session.scan(name, body, carry, len(blocks))[1]


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains every method at every rate and seed; curves are [method, report, rate, seed]."""
    compared = methods(config)
    if config.horizon % config.hold:
        msg = f"hold={config.hold} must divide horizon={config.horizon}."
        raise ValueError(msg)
    network = make_network(config.width)
    replicas = make_replicas(network, config)
    probed = session.stage("probe", functools.partial(probe, network, replicas, config))
    noise = jnp.float32(probed["noise"][1].mean())
    curves = []
    with session.progress("methods", len(compared)) as meter:
        for name, method in compared.items():
            curves.append(train(name, method, network, replicas, noise, config, session))
            meter.advance()
    curves = {key: np.stack([curve[key] for curve in curves]) for key in curves[0]}
    # A run that diverged guesses: error 0.9, loss clipped.
    curves["train_loss"] = np.nan_to_num(curves["train_loss"], nan=1e3, posinf=1e3)
    return {
        "method": np.array(list(compared)),
        "rate": np.array(config.rates),
        "num_rollouts": np.array(config.num_rollouts),
        "probe_rate": np.array(config.probe_rate),
        "probe_rollouts": np.array(config.probe_rollouts),
        "probe_temperature": np.array(config.probe_temperatures),
        **probed,
        **curves,
    }


def tuned(results: _run.Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Curves of ``name`` [method, report, seed] at each report's best rate by validation error, and these rates.

    Rates are constant, so the beginning of a run is a run: every point of a curve is tuned for its own budget.
    """
    best = results["validation_error"].mean(axis=-1).argmin(axis=-1)
    picked = np.take_along_axis(results[name], best[:, :, None, None], axis=2)[:, :, 0]
    return picked, results["rate"][best]


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Test errors at equal gradients and at about equal updates, each at the rate tuned for it."""
    test, rates = tuned(results, "test_error")
    train_loss, _ = tuned(results, "train_loss")
    sizes, _ = tuned(results, "effective_sample_size")
    collapsed, _ = tuned(results, "collapsed")
    number = int(results["updates"][:, -1].min())
    few = (results["updates"] <= number).sum(axis=1) - 1  # the last report with at most that many updates
    counts = results["updates"][np.arange(len(few)), few]
    headers = ["method", "gradients", "updates", "rate", "test error %", "train loss"]
    headers += [f"test error % by {number} updates", "its rate", "ESS", "collapsed %", "seconds"]
    percent = lambda errors: f"{100 * errors.mean():.2f} ± {100 * interval(errors):.2f}"
    rows = [
        [
            str(name),
            f"{results['gradients'][m, -1]}",
            f"{results['updates'][m, -1]}",
            f"{rates[m, -1]:g}",
            percent(test[m, -1]),
            f"{train_loss[m, -1].mean():.1e}",
            f"{percent(test[m, few[m]])} ({counts[m]})" if few[m] >= 0 else "–",
            f"{rates[m, few[m]]:g}" if few[m] >= 0 else "–",
            f"{sizes[m, -1].mean():.2f}" if np.isfinite(sizes[m, -1]).all() else "–",
            f"{100 * collapsed[m, -1].mean():.0f}" if np.isfinite(collapsed[m, -1]).all() else "–",
            f"{results['seconds'][m].sum():.1f}",
        ]
        for m, name in enumerate(results["method"])
    ]
    return headers, rows


COLOURS = {
    "SGD": "#000000", "SGD, momentum": "#0072b2", "Entropy-SGD": "#009e73", "CSGD": "#e69f00",
    "CSGD, held": "#d55e00", "CSGD, held, guided": "#cc79a7", "CSGD, held, hot": "#999999",
}  # fmt: skip


def figure(results: _run.Arrays) -> plt.Figure:
    """Test error against gradients and against updates; effective sample sizes against T and along training."""
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 2, figsize=(12.6, 8.2), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        draw_errors(axes[0, 0], results, "gradients")
        axes[0, 0].set(xlabel="minibatch gradients, those of the rollouts included", title="equal gradients")
        draw_errors(axes[0, 1], results, "updates")
        axes[0, 1].set(xlabel="updates of the weights", title="equal updates")
        draw_sizes(axes[1, 0], results)
        draw_training_sizes(axes[1, 1], results)
    return fig


def draw_errors(axis, results: _run.Arrays, count: str) -> None:
    """Test error, mean and 95 % band over the seeds, names at the right."""
    test = 100 * tuned(results, "test_error")[0]
    for m, name in enumerate(results["method"]):
        seen = np.unique(results["updates"][m], return_index=True)[1]
        seen = seen[results["updates"][m, seen] > 0]
        x, mean, half = results[count][m, seen], test[m, seen].mean(-1), interval(test[m, seen])
        axis.plot(x, mean, "o-", color=COLOURS[str(name)], linewidth=1.5, markersize=3)
        low = np.maximum(mean - half, mean / 3)
        axis.fill_between(x, low, mean + half, color=COLOURS[str(name)], alpha=0.15, linewidth=0)
    axis.set(xscale="log", yscale="log", ylabel="test error   [%]")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (2, 3, 5, 20, 50) else "")
    axis.xaxis.set_minor_formatter("")
    label_ends(axis, results["method"], test[:, -1].mean(axis=-1))


def label_ends(axis, names: np.ndarray, values: np.ndarray) -> None:
    """The methods' names right of a logarithmic axis, in the order of their last values."""
    bottom, top = np.log(axis.get_ylim())
    heights = spread_out((np.log(np.maximum(values, np.exp(bottom))) - bottom) / (top - bottom), 0.07)
    heights += max(0.0, -heights.min()) - max(0.0, heights.max() - 1.0)
    for name, height in zip(map(str, names), heights, strict=True):
        axis.text(
            1.02, height, name, color=COLOURS[name], va="center", transform=axis.transAxes, fontsize=9.5
        )


def draw_sizes(axis, results: _run.Arrays) -> None:
    """Share of effective rollouts against T, without a guide and with it, for each number of rollouts."""
    x, counts = results["probe_temperature"], results["probe_rollouts"]
    for guided, (colour, word) in enumerate(((COLOURS["CSGD, held"], "no guide"), ("#cc79a7", "guided"))):
        for n, (count, line) in enumerate(zip(counts, ("--", "-"), strict=False)):
            sizes = results["probe_size"][guided, n]
            mean, half = sizes.mean(-1), interval(sizes)
            axis.plot(x, mean, line, marker="o", markersize=3.5, color=colour, label=f"{word}, n = {count}")
            axis.fill_between(
                x, np.maximum(mean - half, 0.9), mean + half, color=colour, alpha=0.15, linewidth=0
            )
    axis.set(xscale="log", yscale="log", ylim=(0.9, 1.5 * counts.max()))
    axis.axvline(own := results["probe_rate"] * results["noise"][1].mean(), color="#4d4d4d", linestyle=":")
    note = f"T of the minibatches,\nh tr(Σ)/d = {1e5 * own:.1f}·10⁻⁵"
    axis.annotate(note, (own, counts.max()), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="temperature T of the rollouts   [nats]", ylabel="effective sample size   [rollouts]")
    axis.set_title(f"which T keeps the weights alive (h = {results['probe_rate']:g})")
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_training_sizes(axis, results: _run.Arrays) -> None:
    """Effective sample size of the controls along training, at the rates of the curves above."""
    sizes, _ = tuned(results, "effective_sample_size")
    alive = [m for m in range(len(sizes)) if np.isfinite(sizes[m, -1]).all()]
    for m in alive:
        seen, colour = np.isfinite(sizes[m]).all(axis=-1), COLOURS[str(results["method"][m])]
        x, mean, half = results["gradients"][m, seen], sizes[m, seen].mean(-1), interval(sizes[m, seen])
        axis.plot(x, mean, "o-", color=colour, linewidth=1.5, markersize=3)
        axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    count = int(results["num_rollouts"])
    axis.set(xscale="log", yscale="log", ylim=(0.9, count * 1.1), xlabel="minibatch gradients")
    axis.set(
        ylabel=f"effective sample size, of {count} rollouts", title="effective sample size while training"
    )
    axis.xaxis.set_minor_formatter("")
    axis.set_yticks([], minor=True)
    axis.set_yticks([1, 2, 4, count], labels=["1", "2", "4", str(count)])
    label_ends(axis, results["method"][alive], sizes[alive, -1].mean(axis=-1))
