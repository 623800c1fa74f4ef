"""Training the defences that adversarial_table and adversarial_curves compare, and attacking them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _datasets, _run
from jaxopt_pde import _validate, models, robustness


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained and attacked."""

    dataset: str = "digits"
    """``"digits"`` (comes with scikit-learn), ``"mnist"`` or ``"cifar10"`` (from data_dir)."""
    data_dir: str | None = dataclasses.field(default=None, metadata={"hash": False})
    """Where MNIST or CIFAR-10 lies; None reads the environment variable JAXOPT_PDE_DATA."""
    network: str = "mlp"
    """``"mlp"`` (two hidden layers), ``"lenet"`` (images of 22 pixels a side at least), ``"resnext"`` (depths (1, 1),
    8 channels) or ``"resnext34"``."""
    width: int = 48
    """Units of each hidden layer of the ``"mlp"``."""
    num_train: int = 1000
    """Training images of each seed."""
    num_validation: int = 300
    """Images of each seed for choosing the weights."""
    num_test: int = 400
    """Test images of each seed, for the clean error."""
    num_attacked: int = 300
    """How many of them are attacked."""
    num_seeds: int = 8
    """Replicas: images, initial weights and minibatches."""
    weights: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
    """The grid of the weight s, the same for every defence; ascending."""
    margin: float = 0.01
    """Chosen is the largest weight whose mean validation error exceeds that of J⁰ by at most this share."""
    tanh: float = 1.0
    """Bound b of the logits z ↦ b tanh(z/b), where a defence has it."""
    num_steps: int = 1000
    """Minibatch steps of Adam, a multiple of report_every."""
    report_every: int = 100
    """Steps between two lines of progress."""
    batch_size: int = 50
    """Images of a minibatch, drawn with replacement."""
    learning_rate: float = 3e-3
    """Adam's, falling to 0 as a cosine; chosen by hand on J⁰."""
    attack_steps: int = 100
    """Steps of each restart of the minimal-distance attack."""
    attack_restarts: int = 1
    """Its restarts."""
    seed: int = 0
    """Of everything random."""


class Defence(NamedTuple):
    """The factors that a weight s is multiplied with: J = E ℓ + s (one E‖∇ℓ‖₁/√d + two E‖∇ℓ‖₂ + largest max‖∇ℓ‖₂).

    An ℓ∞ ball of radius s/√d lies in the ℓ2 ball of radius s and touches it, so one grid of s serves both norms.
    """

    one: float = 0.0
    two: float = 0.0
    largest: float = 0.0
    tanh: bool = False


DEFENCES = {
    "J⁰": Defence(),
    "tanh": Defence(tanh=True),
    "J¹": Defence(one=1.0),
    "J²": Defence(two=1.0),
    "Lip": Defence(largest=1.0),
    "2-Lip": Defence(two=1.0, largest=1.0),
    "2-Lip & tanh": Defence(two=1.0, largest=1.0, tanh=True),
}
"""In the order of the talk, with the ablations between."""

NORMS = (2.0, np.inf)


class Setting(NamedTuple):
    """A defence at one weight: the three factors times s, and whether the logits are bounded."""

    one: Any
    two: Any
    largest: Any
    tanh: Any


def settings(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, Setting]:
    """Every defence at every weight: index of the defence [s], weight [s] (0 where there is none), settings [s]."""
    rows = [
        (d, weight, (*(weight * factor for factor in defence[:3]), defence.tanh))
        for d, defence in enumerate(DEFENCES.values())
        for weight in (weights if any(defence[:3]) else (0.0,))
    ]
    index, weight, values = zip(*rows, strict=True)
    return (
        np.array(index),
        np.array(weight),
        Setting(*(np.array(column) for column in zip(*values, strict=True))),
    )


class Images(NamedTuple):
    """Images [seed, n, h, w, c] (uint8, or float32 in [0, 1]) and labels [seed, n] of one part."""

    x: np.ndarray
    y: np.ndarray


def draw_images(config: Training) -> tuple[str, dict[str, Images]]:
    """The data's name for figures, and the parts ``"train"``, ``"validation"``, ``"test"``, other images for each seed.

    Raises:
        ValueError: an unknown data set, or more images than it has.
    """
    _validate.check_choice("dataset", config.dataset, ("digits", "mnist", "cifar10"))
    if config.dataset == "digits":
        data = _datasets.digits(validation=0.0, test=0.0)
    else:
        data = getattr(_datasets, config.dataset)(config.data_dir)
    sizes = (config.num_train, config.num_validation, config.num_test)
    pooled = config.dataset == "digits"  # its test images are drawn anew for each seed too
    have = (len(data.train_labels), len(data.test_labels))
    if sum(sizes[: 3 if pooled else 2]) > have[0] or (not pooled and sizes[2] > have[1]):
        msg = f"num_train, num_validation, num_test = {sizes} are more images than {data.note} has, {have}."
        raise ValueError(msg)
    if config.num_attacked > config.num_test:
        msg = f"num_attacked={config.num_attacked} must not exceed num_test={config.num_test}."
        raise ValueError(msg)
    parts = {"train": [], "validation": [], "test": []}
    for index in range(config.num_seeds):
        random = np.random.default_rng([config.seed, index])
        order = random.permutation(have[0])
        train, validation, rest = np.split(order, np.cumsum(sizes[:2]))
        test = rest[: sizes[2]] if pooled else random.permutation(have[1])[: sizes[2]]
        parts["train"].append((data.train_images[train], data.train_labels[train]))
        parts["validation"].append((data.train_images[validation], data.train_labels[validation]))
        source = (data.train_images, data.train_labels) if pooled else (data.test_images, data.test_labels)
        parts["test"].append((source[0][test], source[1][test]))
    stack = lambda pairs: Images(*(np.stack(column) for column in zip(*pairs, strict=True)))
    return data.note, {name: stack(pairs) for name, pairs in parts.items()}


def make_network(config: Training) -> Any:
    """The network without the tanh."""
    known = {
        "mlp": models.MLP((config.width, config.width)),
        "lenet": models.LeNet(dropout_rate=0.0),
        "resnext": models.ResNeXt(depths=(1, 1), width=8),
        "resnext34": models.ResNeXt(),
    }
    _validate.check_choice("network", config.network, tuple(known))
    return known[config.network]


def as_unit(images: jax.Array) -> jax.Array:
    """Pixels in [0, 1]."""
    return images if images.dtype == jnp.float32 else images.astype(jnp.float32) / 255


class Defended(NamedTuple):
    """Trained networks.

    Attributes:
        note: the data, for figures.
        parts: the images of :func:`draw_images`.
        logits: ``logits(variables, images)`` of one network, *below* the tanh: it is increasing, so that it changes
            no decision, and an attack is not led astray by its flat ends.
        variables: of every setting and seed, leading axes [s, seed].
        setting, weight: of :func:`settings`.
        validation_error: [s, seed].
        chosen: [defence], the setting chosen for each.
    """

    note: str
    parts: dict[str, Images]
    logits: Callable
    variables: Any
    setting: np.ndarray
    weight: np.ndarray
    validation_error: np.ndarray
    chosen: np.ndarray

    def best(self) -> Any:
        """Variables at the chosen weights, leading axes [defence, seed]."""
        return take(self.variables, self.chosen)


def take(variables: Any, index: np.ndarray) -> Any:
    """Some of the networks along the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], variables)


def over(config: Training, function: Callable) -> Callable:
    """``function(net, data)`` over nets with leading axes [s, seed] and data with [seed]."""
    if config.network == "mlp":
        # Settings in turn: wide enough as it is.
        seeds = jax.vmap(function)
    else:  # convolutions with a kernel for each example are slow
        seeds = lambda net, data: jax.lax.map(lambda pair: function(*pair), (net, data))
    return jax.jit(lambda nets, data: jax.lax.map(lambda net: seeds(net, data), nets))


def choose(index: np.ndarray, validation_error: np.ndarray, margin: float) -> np.ndarray:
    """For each defence the last setting whose mean error is at most that of J⁰ plus the margin; else its first."""
    mean = validation_error.mean(-1)
    chosen = []
    for defence in range(index.max() + 1):
        own = np.flatnonzero(index == defence)
        within = own[mean[own] <= mean[0] + margin + 1e-9]
        chosen.append(within[-1] if len(within) else own[0])
    return np.array(chosen)


def bounded(config: Training, logits: jax.Array, tanh: Any) -> jax.Array:
    """The logits z, or b tanh(z/b) where ``tanh``."""
    return jnp.where(tanh, config.tanh * jnp.tanh(logits / config.tanh), logits)


def objective(
    config: Training,
    network: Any,
    params: Any,
    statistics: Any,
    xs: jax.Array,
    ys: jax.Array,
    setting: Setting,
) -> tuple[jax.Array, Any]:
    """J on a minibatch, and the new statistics of BatchNorm (``statistics`` is empty without it).

    All settings are one program, so the weights are traced and every term is computed, whatever its weight.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels
    variables = {"params": params, **statistics}
    logits, updated = network.apply(variables, xs, train=True, mutable=list(statistics))

    def own(xs, ys):
        """On the running statistics: each loss sees its own image alone, as the penalties ask."""
        return losses(bounded(config, network.apply(variables, xs, train=False), setting.tanh), ys)

    penalty = functools.partial(robustness.gradient_penalty, own, batched=True)
    value = losses(bounded(config, logits, setting.tanh), ys).mean()
    value += setting.one / float(np.sqrt(xs[0].size)) * penalty(norm=1)(xs, ys)
    value += setting.two * penalty(norm=2)(xs, ys)
    return value + setting.largest * penalty(norm=2, reduce="max")(xs, ys), updated


def train(config: Training, session: _run.Session) -> Defended:
    """Trains every defence at every weight and seed, and chooses the weights by the validation error.

    Raises:
        ValueError: report_every that does not divide num_steps, weights that do not ascend.
    """
    if config.num_steps % config.report_every:
        msg = f"report_every={config.report_every} must divide num_steps={config.num_steps}."
        raise ValueError(msg)
    if list(config.weights) != sorted(config.weights):
        msg = f"weights must ascend, got {config.weights!r}."
        raise ValueError(msg)
    note, parts = draw_images(config)
    network = make_network(config)
    index, weight, table = settings(config.weights)
    gradient_fn = jax.grad(functools.partial(objective, config, network), has_aux=True)
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))
    image = as_unit(parts["train"].x[0, :1])

    def start(key):
        variables = network.init(key, image, train=False)
        return variables, tx.init(variables["params"])

    def advance(net, data):
        (state, setting, count), (key, x, y) = net, data

        def step(state, count):
            variables, opt_state = state
            statistics = {name: tree for name, tree in variables.items() if name != "params"}
            drawn = jax.random.randint(jax.random.fold_in(key, count), (config.batch_size,), 0, len(y))
            gradient, updated = gradient_fn(
                variables["params"], statistics, as_unit(x[drawn]), y[drawn], setting
            )
            updates, opt_state = tx.update(gradient, opt_state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return ({"params": params, **updated}, opt_state), None

        return jax.lax.scan(step, state, count + jnp.arange(config.report_every))[0]

    keys = lambda name: jax.random.split(_run.key_for(config.seed, name), config.num_seeds)
    state = jax.jit(jax.vmap(start))(keys("weights"))
    spread = lambda leaf: jnp.broadcast_to(leaf, (len(index), *leaf.shape))
    state = jax.tree.map(spread, state)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf[:, None], config.num_seeds, 1), table)
    repeated = Setting(*(leaf.astype(bool if leaf.dtype == bool else np.float32) for leaf in repeated))
    data = (keys("minibatches"), jnp.asarray(parts["train"].x), jnp.asarray(parts["train"].y))
    compiled = over(config, advance)
    with session.progress("training", config.num_steps) as meter:

        def body(state, report):
            counts = np.full((len(index), config.num_seeds), report * config.report_every)
            state = jax.block_until_ready(compiled((state, repeated, counts), data))
            meter.advance(config.report_every)
            return state, {}

        state, _ = session.scan("training", body, state, config.num_steps // config.report_every)
    logits = functools.partial(network.apply, train=False)
    errors = clean_errors(config, logits, state[0], parts["validation"])
    return Defended(
        note, parts, logits, state[0], index, weight, errors, choose(index, errors, config.margin)
    )


def clean_errors(config: Training, logits: Callable, variables: Any, images: Images) -> np.ndarray:
    """Share of misclassified images [s, seed]."""

    def error(net, data):
        x, y = data
        wrong = jax.lax.map(
            lambda pair: logits(net, as_unit(pair[0][None]))[0].argmax() != pair[1], (x, y), batch_size=500
        )
        return wrong.mean()

    return np.asarray(over(config, error)(variables, tuple(map(jnp.asarray, images))))


def attacked(config: Training, images: Images) -> tuple[jax.Array, jax.Array]:
    """The images that are attacked, in [0, 1], and their labels."""
    return as_unit(jnp.asarray(images.x[:, : config.num_attacked])), jnp.asarray(
        images.y[:, : config.num_attacked]
    )


def distances(
    config: Training,
    logits: Callable,
    variables: Any,
    images: Images,
    norm: float,
    through: np.ndarray | None = None,
) -> np.ndarray:
    """The smallest perturbations found [s, seed, image], ∞ where none was; ``through`` [s]: attack the tanh too."""

    def seen(variables, tanh, x):
        return bounded(config, logits(variables, x), tanh)

    def attack(net, data):
        key, x, y = data
        result = robustness.minimal_distance(
            functools.partial(seen, *net), x, y, key, norm=norm,
            num_steps=config.attack_steps, restarts=config.attack_restarts,
        )  # fmt: skip
        return result.distance

    keys = jax.random.split(_run.key_for(config.seed, "attack", repr(norm)), config.num_seeds)
    count = len(jax.tree.leaves(variables)[0])
    through = np.zeros(count, bool) if through is None else through
    nets = (variables, np.repeat(through[:, None], config.num_seeds, 1))
    return np.asarray(over(config, attack)(nets, (keys, *attacked(config, images))))
