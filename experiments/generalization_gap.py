"""Random labels against true labels, with and without a Lipschitz bound.

A network of any size fits labels drawn by coin flips as well as true ones, so a small training error proves nothing
about new data. What tells the two apart is the slope that a fit needs. Take labels u = ±1 (scikit-learn's digits, odd
against even) and a network f with E|f - u|² + λ max(Lip(f) - L, 0), where Lip(f) is the largest gradient over the
training images. For an allowed slope L at least Lip(u), the greatest ratio of labels to distances, some L-Lipschitz
function fits exactly, and every one that does converges to the true labels as the data grow; for a smaller L none
fits. True labels of different kinds lie far apart, random ones do not, so Lip(u) is about twice as large for them.

On the left, the training loss against L in units of L0, the constant of the true labels. The dotted floor is one that
no L-Lipschitz function can beat: each pair of opposite labels at distance d costs at least (2 - Ld)²/2. At L = L0 the
true labels are nearly fitted, with loss 0.05 and no error, and coin flips are not, 0.43. In the middle, training and
test errors: the bound narrows the gap between them, from 50 to 41 % for coin flips at L0, at no cost for true labels,
and with half of the labels random it lowers the error on the true test labels from 32 to 11 % at L0/4. On the right,
the slopes: the largest gradient over the data, which is what the penalty sees, the steepest secant between two data
points, both below Lip(f), and the product of the layers' norms, above it. Under tight bounds the secant exceeds the
largest gradient: the network is steeper between the data than at them, and only the product bounds Lip(f).

The separation is one of degree. In 64 dimensions 300 random labels need but twice the slope of true ones, and the floor
at L0 is far below the loss that training reaches: most of what keeps the random labels out there is the network and
its training, not the theorem.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments import _datasets, _run
from experiments.quickstart import interval
from jaxopt_pde import models, robustness


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the defaults give the figure of the gallery."""

    fractions: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of the training labels that are replaced by coin flips."""
    bounds: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, float("inf"))
    """Allowed slopes L in units of L0, the Lipschitz constant of the true training labels; inf for no bound."""
    weight: float = 3.0
    """λ, the price of a unit of slope above L; chosen by hand so that the largest gradient ends near L."""
    num_examples: int = 300
    """Training images of each seed."""
    num_seeds: int = 8
    """Replicas: training images, labels and initial weights."""
    width: int = 64
    """Units of each of the two hidden layers."""
    num_steps: int = 2000
    """Full-batch gradient steps of Adam, a multiple of report_every."""
    report_every: int = 200
    """Steps between two lines of progress."""
    learning_rate: float = 3e-3
    """Adam's, falling to 0 as a cosine; chosen by hand."""
    seed: int = 0
    """Of everything random."""


SMOKE = Config(
    fractions=(0.0, 1.0), bounds=(0.25, float("inf")), num_examples=40, num_seeds=2, width=8, num_steps=60,
    report_every=60,
)  # fmt: skip

NOT_FINITE = ("bound",)


def draw_labels(config: Config):
    """Training images [seed, n, 64], true and drawn labels ±1 [seed, n] and [fraction, seed, n]; the test part."""
    data = _datasets.digits(validation=0.0, test=0.5, seed=config.seed)
    flat = lambda images: images.reshape(len(images), -1)
    parity = lambda labels: np.where(labels % 2, 1.0, -1.0).astype(np.float32)
    images, true, drawn = [], [], []
    for index in range(config.num_seeds):
        random = np.random.default_rng([config.seed, index])
        chosen = random.permutation(len(data.train_labels))[: config.num_examples]
        labels = parity(data.train_labels[chosen])
        # One coin and one rank an image: a larger fraction spoils the same labels and more.
        coins, ranks = random.choice([-1.0, 1.0], len(chosen)), random.permutation(len(chosen))
        spoilt = [np.where(ranks < round(f * len(chosen)), coins, labels) for f in config.fractions]
        images.append(flat(data.train_images[chosen]))
        true.append(labels)
        drawn.append(spoilt)
    labels = np.moveaxis(np.array(drawn, np.float32), 0, 1)
    return np.array(images), np.array(true), labels, (flat(data.test_images), parity(data.test_labels))


def least_loss(images: np.ndarray, labels: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """A lower bound on the mean square residual of any L-Lipschitz function, for each L of ``slopes``.

    Residuals r, s of opposite labels at distance d have |r| + |s| ≥ 2 - Ld, so r² + s² ≥ (2 - Ld)²/2. The pairs are
    disjoint, closest first.
    """
    above, below = images[labels > 0].astype(float), images[labels < 0].astype(float)
    distances = np.sqrt(((above[:, None] - below[None]) ** 2).sum(-1))
    closest = []
    for _ in range(min(distances.shape)):
        pair = np.unravel_index(distances.argmin(), distances.shape)
        closest.append(distances[pair])
        distances[pair[0]], distances[:, pair[1]] = np.inf, np.inf
    shortfall = np.maximum(2 - np.multiply.outer(slopes, closest), 0)
    return (shortfall**2).sum(-1) / 2 / len(labels)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Trains every fraction, bound and seed at once; arrays are [fraction, bound, seed]."""
    if config.num_steps % config.report_every:
        msg = f"report_every={config.report_every} must divide num_steps={config.num_steps}."
        raise ValueError(msg)
    images, true, labels, test = draw_labels(config)
    constant = jax.jit(jax.vmap(robustness.lipschitz_constant))
    base = np.asarray(constant(images, true))
    network = models.MLP((config.width, config.width), num_classes=1, activation=jnp.tanh)
    value = lambda params, xs: network.apply(params, xs, train=False)[..., 0]
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))

    def start(key):
        params = network.init(key, images[0, :1], train=False)
        return params, tx.init(params)

    def objective(params, xs, us, slope):
        function = lambda x, _: value(params, x[None])[0]
        excess = robustness.lipschitz_excess(function, slope)(xs, us)
        return jnp.mean((value(params, xs) - us) ** 2) + config.weight * excess

    def advance(state, xs, us, slope):
        def step(state, _):
            params, opt_state = state
            updates, opt_state = tx.update(jax.grad(objective)(params, xs, us, slope), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, state, length=config.report_every)[0]

    def measure(state, xs, us):
        params = state[0]
        fitted = value(params, xs)
        layers = [robustness.DenseLayer(params["params"][f"Dense_{i}"]["kernel"]) for i in range(3)]
        return {
            "train_loss": jnp.mean((fitted - us) ** 2),
            "train_error": jnp.mean(fitted * us <= 0),
            "test_error": jnp.mean(value(params, test[0]) * test[1] <= 0),
            "largest_gradient": robustness.largest_gradient(lambda x, _: value(params, x[None])[0], xs, us),
            "steepest_secant": robustness.lipschitz_constant(xs, fitted, chunk_size=1),
            "norm_product": robustness.lipschitz_upper_bound(layers),
        }

    def over_all(function, *axes):
        """Maps over fractions, bounds and seeds; each of ``axes`` names those an argument has."""
        for axis in "sbf":
            function = jax.vmap(function, in_axes=tuple(0 if axis in names else None for names in axes))
        return function

    slopes = jnp.asarray(config.bounds, jnp.float32)[:, None] * base[None]
    keys = jax.random.split(_run.key_for(config.seed, "weights"), config.num_seeds)
    shape = (len(config.fractions), len(config.bounds), config.num_seeds)
    state = jax.jit(jax.vmap(start))(keys)
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape[:2], *leaf.shape)), state)
    compiled = jax.jit(over_all(advance, "fbs", "s", "fs", "bs"))
    with session.progress("training", config.num_steps) as meter:

        def body(state, _):
            state = jax.block_until_ready(compiled(state, images, labels, slopes))
            meter.advance(config.report_every)
            return state, {}

        state, _ = session.scan("training", body, state, config.num_steps // config.report_every)
    found = jax.device_get(jax.jit(over_all(measure, "fbs", "s", "fs"))(state, images, labels))
    fine = np.geomspace(min(config.bounds) / 2, 8.0, 60)
    floors = [
        [least_loss(*one[:2], fine * one[2]) for one in zip(images, us, base, strict=True)] for us in labels
    ]
    share = np.array(config.fractions)[:, None, None]
    # On new data whose labels are spoilt in the same way, a coin flip is wrong half of the time.
    expected = (1 - share) * found["test_error"] + share / 2
    return {
        "fraction": np.array(config.fractions),
        "bound": np.array(config.bounds),
        "constant": np.array([constant(images, drawn) / base for drawn in labels]),
        "base": base,
        "fine": fine,
        "floor": np.array(floors),
        "gap": expected - found["train_error"],
        **{name: array / base if name in SLOPES else array for name, array in found.items()},
    }


SLOPES = {
    "largest_gradient": "largest gradient",
    "steepest_secant": "steepest secant",
    "norm_product": "product of norms",
}


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Means and 95 % confidence intervals over the seeds; slopes in units of L0."""
    headers = [
        "random labels", "Lip(u)/L0", "allowed L/L0", "train loss", "train error %", "test error % (true labels)",
        "gap %", *SLOPES.values(),
    ]  # fmt: skip
    show = lambda values, digits: f"{values.mean():.{digits}f} ± {interval(values):.{digits}f}"
    rows = []
    for f, fraction in enumerate(results["fraction"]):
        for b, bound in enumerate(results["bound"]):
            percent = [show(100 * results[name][f, b], 1) for name in ("train_error", "test_error", "gap")]
            slopes = [show(results[name][f, b], 2) for name in SLOPES]
            loss = show(results["train_loss"][f, b], 4)
            rows.append(
                [f"{fraction:.0%}", show(results["constant"][f], 2), f"{bound:g}", loss, *percent, *slopes]
            )
    return headers, rows


COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")


def figure(results: _run.Arrays) -> plt.Figure:
    """Training loss over its floor, errors, and the measured slopes, against the allowed slope."""
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    finite = np.isfinite(results["bound"])
    position = np.where(finite, results["bound"], 2.5 * results["bound"][finite].max())
    names = [f"{bound:g}" if np.isfinite(bound) else "none" for bound in results["bound"]]
    with plt.rc_context(style):
        fig, axes = plt.subplots(1, 3, figsize=(13.2, 4.7), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        axes[2].set(yscale="log")
        for f, fraction in enumerate(results["fraction"]):
            colour = COLOURS[f]
            draw = functools.partial(draw_band, position=position, color=colour)
            draw(axes[0], results["train_loss"][f], label=f"{fraction:.0%} random")
            axes[0].plot(
                results["fine"], results["floor"][f].mean(0), color=colour, linewidth=1, linestyle=":"
            )
            draw(axes[1], 100 * results["train_error"][f], linestyle="--")
            draw(axes[1], 100 * results["test_error"][f])
            for name, line in zip(SLOPES, ("-", "--", ":"), strict=True):
                draw(axes[2], results[name][f], linestyle=line)
        axes[0].set(ylabel="training loss   E|f − u|²", ylim=(-0.02, 1.05))
        axes[0].set_title("fit (dotted: floor of all L-Lipschitz functions)")
        axes[0].legend(frameon=False, title="labels")
        axes[1].set(ylabel="error   [%]", title="errors", ylim=(-1, 70))
        axes[1].plot([], [], color="#4d4d4d", label="test images, true labels")
        axes[1].plot([], [], color="#4d4d4d", linestyle="--", label="training images, labels as drawn")
        axes[1].legend(frameon=False, loc="upper right", fontsize=9)
        for name, line in zip(SLOPES, ("-", "--", ":"), strict=True):
            axes[2].plot([], [], color="#4d4d4d", linestyle=line, label=SLOPES[name])
        axes[2].plot(
            position[finite], position[finite], color="#999999", linewidth=5, alpha=0.35, label="allowed"
        )
        axes[2].set(ylabel="slope of f   [L0]", title="measured slopes")
        axes[2].yaxis.set_major_formatter("{x:g}")
        axes[2].legend(frameon=False, fontsize=9)
        for axis in axes:
            axis.set(xscale="log", xlabel="allowed slope L   [L0 = Lip(true labels)]")
            axis.set_xlim(position[0] / 1.2, position[-1] * 1.2)
            axis.set_xticks(position, names)
            axis.minorticks_off()
    return fig


def draw_band(axis, values: np.ndarray, position: np.ndarray, **line) -> None:
    """Mean over the seeds with its 95 % confidence interval."""
    mean, half = values.mean(axis=-1), interval(values)
    low = mean / 2 if axis.get_yscale() == "log" else 0.0
    axis.plot(position, mean, "o", markersize=3, color=line["color"])
    axis.plot(position, mean, linewidth=1.5, **line)
    axis.fill_between(
        position, np.maximum(mean - half, low), mean + half, color=line["color"], alpha=0.15, linewidth=0
    )
