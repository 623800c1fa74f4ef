"""Parle with its replicas in processes of their own, which talk once per L gradients, against data-parallel SGD.

N processes, each with one device, share R replicas of a small network on scikit-learn's digits. Data-parallel SGD
sends the mean gradient round at every step; Parle sends the mean of its replicas once in L = 25. Both spend R minibatch
gradients at a time, on the same minibatches. The processes are started on this machine, meet over the loopback
interface and exchange by gloo; `python -m experiments._launcher` and `_parle_worker` are what a user starts by hand.

What to see: the loss does not know how many processes there are, up to how sums round. Parle sends 25.0 times fewer
bytes for a gradient by count, with the ring algorithm over the collectives of the compiled programs, and 24.1 times
fewer as measured at the loopback interface, where headers and whatever else runs on the machine are counted too. The
errors of the two, means over seeds that are trained in one process, do not differ at the end; Parle is behind in the
first third and ends at a higher training loss. Each method has the rate of one grid that is best on the validation
images, and the processes train the first seed at that rate. A run that is killed goes on from the last number of
processes that was finished; within a training only the workers started by hand keep checkpoints, whose traffic would
be measured here.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments import _launcher, _parle_worker, _run
from experiments._parle_settings import METHODS, PARLE, SGD, Settings
from experiments._parle_training import Data, first_key, make_programs

COLOURS = {PARLE: "#d55e00", SGD: "#0072b2"}  # Okabe & Ito


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and by how many processes."""

    seed: int = 0
    """Seeds the split of the data; with its index, every training's initial weights and minibatches."""
    num_seeds: int = 10
    """Trainings of the comparison of errors."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes; each divides num_replicas, and 1 runs in this one."""
    num_replicas: int = 4
    """R replicas of Parle, and minibatches in a step of data-parallel SGD."""
    num_steps: int = 25
    """L, gradients of a replica between two exchanges of Parle."""
    num_updates: int = 40
    """Exchanges of Parle: each training spends R · L · num_updates minibatch gradients."""
    report_every: int = 4
    """Exchanges of Parle between two points of the curves."""
    batch_size: int = 16
    """Examples in the minibatch of one replica, drawn with replacement."""
    features: tuple[int, ...] = (128,)
    """Hidden widths of the network."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 0.6, 1.0)
    """The grid, the same for both: inner learning rate of Parle, learning rate of SGD, each decayed by a cosine."""
    momentum: float = 0.9
    """Nesterov momentum of SGD, heavy ball of Parle within an update."""
    time_per_rate: float = 80.0
    """Parle: smoothing time t over the inner learning rate."""
    coupling: float = 3.0
    """Parle: coupling time ρ over t."""


NOT_FINITE = (
    "measured_bytes_per_gradient",
    "seeds_train_loss",
)  # one process, no /proc/net/dev; a rate too large
NOT_REPRODUCIBLE = ("measured_bytes_per_gradient", "seconds")

SMOKE = Config(num_seeds=2, processes=(2,), num_updates=4, report_every=2, features=(), rates=(0.1,))


def settings_of(config: Config, **rates: float) -> Settings:
    """What the processes are told."""
    names = {field.name for field in dataclasses.fields(Settings)}
    shared = {name: value for name, value in vars(config).items() if name in names}
    return Settings(**shared, **rates)


def read_data(config: Config) -> dict[str, np.ndarray]:
    """The split, as arrays by the names of ``Data``."""
    return _parle_worker.read_data(None, config.seed)


def compare(config: Config, method: str, arrays: _run.Arrays) -> _run.Arrays:
    """Curves [report, rate, seed] of a method in one process, all rates and seeds in one program."""
    settings = settings_of(config)
    programs = make_programs(settings, method)
    data = Data(**{name: jnp.asarray(arrays[name]) for name in Data._fields})

    def curve(rate, replicate):
        def report(state, _):
            state = programs.advance(state, rate, data)
            return state, programs.measure(state, data)

        state = programs.start(first_key(config.seed, replicate), rate)
        return jax.lax.scan(report, state, length=settings.num_reports)[1]

    over_seeds = jax.vmap(curve, (None, 0), out_axes=1)
    everything = jax.jit(jax.vmap(over_seeds, (0, None), out_axes=1))
    return everything(jnp.asarray(config.rates, jnp.float32), jnp.arange(config.num_seeds))


def train(
    config: Config, settings: Settings, arrays: _run.Arrays, processes: int, directory: Path
) -> _run.Arrays:
    """Curves of both methods [method, report] and what they sent, by that many processes."""
    if processes == 1:
        found = [_parle_worker.train(settings, method, arrays, jax.devices()[:1]) for method in METHODS]
    else:
        directory.mkdir(parents=True, exist_ok=True)
        _run.write_arrays(directory / "data.npz", arrays)
        arguments = ["--directory", str(directory), "--settings", json.dumps(settings.as_json())]
        arguments += ["--data", str(directory / "data.npz"), "--platform", "cpu", "--no-checkpoints"]
        _launcher.launch("experiments._parle_worker", arguments, processes)
        found = [_run.read_arrays(directory / f"{method}.npz") for method in METHODS]
        shutil.rmtree(directory)
    exchanged = [each.pop("collectives") for each in found]
    curves = {name: np.stack([each[name] for each in found]) for name in found[0]}
    total = settings.num_reports * settings.gradients_per_report
    measured = curves.pop("measured_bytes").sum(axis=1) / total if processes > 1 else np.full(2, np.nan)
    updates = settings.report_every
    return {
        **{name: curves[name] for name in ("train_loss", "validation_error", "test_error", "seconds")},
        "counted_bytes_per_gradient": curves["counted_bytes"] / settings.gradients_per_report,
        "measured_bytes_per_gradient": measured,
        "exchanges_per_update": np.array(
            [sum(times for size, times in e if size > 8) / updates for e in exchanged]
        ),
    }


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Errors over seeds [method, report, rate, seed]; curves by numbers of processes [method, processes, report].

    Raises:
        ValueError: for a number of processes that does not divide ``num_replicas``.
        ProcessFailed: if a process died.
    """
    for processes in config.processes:
        settings_of(config).check_processes(processes)
    arrays = read_data(config)
    with session.progress("Parle over processes", 2 + len(config.processes)) as meter:
        errors = []
        for method in METHODS:
            errors.append(
                session.stage(f"seeds, {method}", lambda method=method: compare(config, method, arrays))
            )
            meter.advance()
        errors = {f"seeds_{name}": np.stack([each[name] for each in errors]) for name in errors[0]}
        best = errors["seeds_validation_error"][:, -1].mean(axis=-1).argmin(axis=-1)
        rates = dict(zip(("parle_rate", "sgd_rate"), np.array(config.rates)[best].tolist(), strict=True))
        curves = []
        with contextlib.ExitStack() as stack:
            directory = session.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for n in config.processes:
                work = directory / f"{n} processes"
                compute = lambda n=n, work=work: train(config, settings_of(config, **rates), arrays, n, work)
                curves.append(session.stage(f"{n} processes", compute))
                meter.advance()
    return {
        "method": np.array(METHODS),
        "processes": np.array(config.processes),
        "rates": np.array(config.rates),
        "best": best,
        "num_steps": np.array(config.num_steps),
        "gradients": settings_of(config).gradients_per_report
        * np.arange(1, settings_of(config).num_reports + 1),
        **errors,
        **{name: np.stack([each[name] for each in curves], axis=1) for name in curves[0]},
    }


def chosen(results: _run.Arrays, name: str) -> np.ndarray:
    """Curves over seeds at each method's best rate [method, report, seed]."""
    return results[f"seeds_{name}"][np.arange(len(METHODS)), :, results["best"]]


def interval(samples: np.ndarray) -> np.ndarray:
    """Half-width of the 95 % confidence interval of the mean over the last axis (Student's t)."""
    count = samples.shape[-1]
    return stats.t.ppf(0.975, count - 1) * samples.std(axis=-1, ddof=1) / np.sqrt(count)


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Bytes by method and number of processes, how far the losses are from those of one process, and the errors."""
    headers = ["method", "processes", "bytes a gradient", "measured", "fewer", "measured", "loss differs by",
               "valid. error %", "test error %"]  # fmt: skip
    rows = []
    for m, method in enumerate(results["method"]):
        losses = results["train_loss"][m]
        errors = [chosen(results, name)[m, -1] for name in ("validation_error", "test_error")]
        errors = [f"{100 * e.mean():.2f} ± {100 * interval(e):.2f}" for e in errors]
        for p, processes in enumerate(results["processes"]):
            counted = results["counted_bytes_per_gradient"][:, p]
            measured = results["measured_bytes_per_gradient"][:, p]
            fewer = counted[1] / counted[m] if counted[m] else np.nan
            rows.append([
                str(method), str(processes), f"{counted[m]:,.0f}", number(measured[m], ",.0f"),
                number(fewer, ".1f"), number(measured[1] / measured[m], ".1f"),
                f"{np.abs(losses[p] / losses[0] - 1).max():.0e}" if p else "–", *(["", ""] if p else errors),
            ])  # fmt: skip
    return headers, rows


def number(value: float, form: str) -> str:
    """Formatted, or a dash for what was not measured."""
    return format(value, form) if np.isfinite(value) else "–"


def figure(results: _run.Arrays) -> plt.Figure:
    """Loss by numbers of processes, bytes per gradient, and validation errors with their intervals."""
    fig, (losses, sent, errors) = plt.subplots(1, 3, figsize=(13.0, 4.0), layout="constrained")
    draw_losses(results, losses)
    draw_bytes(results, sent)
    for m, method in enumerate(results["method"]):
        curve = 100 * chosen(results, "validation_error")[m]
        mean, half = curve.mean(axis=-1), interval(curve)
        label = f"{method}, rate {results['rates'][results['best'][m]]:g}"
        errors.plot(results["gradients"], mean, color=COLOURS[str(method)], linewidth=2, label=label)
        low = np.maximum(mean - half, mean / 10)  # a log axis has no 0
        errors.fill_between(
            results["gradients"], low, mean + half, color=COLOURS[str(method)], alpha=0.2, linewidth=0
        )
    title = f"errors: means of {curve.shape[-1]} seeds, 95 % bands"
    errors.set(xlabel="minibatch gradients", ylabel="validation error (%)", yscale="log", title=title)
    errors.yaxis.set_major_formatter("{x:g}")
    errors.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (2, 3, 5, 20) else "")
    errors.legend(frameon=False)
    for axis in (losses, sent, errors):
        axis.spines[["top", "right"]].set_visible(False)
    return fig


def draw_losses(results: _run.Arrays, axis: plt.Axes) -> None:
    """The curves of all numbers of processes on top of each other, the wider the fewer."""
    counts = results["processes"]
    for m, method in enumerate(results["method"]):
        looks = (
            {"color": COLOURS[str(method)], "alpha": 0.3, "linewidth": 8.0},
            {"color": COLOURS[str(method)], "linewidth": 3.0},
            {"color": "black", "linewidth": 1.5, "linestyle": (0, (1, 2))},
        )
        for p, n in enumerate(counts):
            label = f"{n} process{'es' * bool(n > 1)}" if m == 0 else None
            axis.plot(results["gradients"], results["train_loss"][m, p], label=label, **looks[min(p, 2)])
        where = (results["gradients"][-1], results["train_loss"][m, 0, -1])
        axis.annotate(
            str(method), where, (0, 10), textcoords="offset points", ha="right", color=COLOURS[str(method)]
        )
    axis.set(
        xlabel="minibatch gradients",
        ylabel="training loss (nats)",
        yscale="log",
        title="the loss, by processes",
    )
    axis.legend(frameon=False)


def draw_bytes(results: _run.Arrays, axis: plt.Axes) -> None:
    """Counted and measured bytes per gradient of each number of processes above one, and their ratios."""
    shown = np.flatnonzero(results["processes"] > 1)
    counted, measured = (results[f"{kind}_bytes_per_gradient"] for kind in ("counted", "measured"))
    for m, method in enumerate(results["method"]):
        at = np.arange(len(shown)) + 0.38 * m
        axis.bar(at, counted[m, shown], 0.34, color=COLOURS[str(method)], label=f"{method}, counted")
        axis.plot(at, measured[m, shown], "D", color="black", markersize=6, label="measured" if m else None)
        for x, value in zip(at, counted[m, shown], strict=True):
            axis.annotate(f"{value:,.0f}", (x, value), (0, 12), textcoords="offset points", ha="center")
    labels = [
        f"{n} processes\n{number(counted[1, p] / counted[0, p], '.1f')} × fewer\n"
        f"(measured {number(measured[1, p] / measured[0, p], '.1f')} ×)"
        for p, n in zip(shown, results["processes"][shown], strict=True)
    ]
    axis.set_xticks(np.arange(len(shown)) + 0.19, labels)
    top = 30 * np.nanmax(np.append(counted, 100.0))
    title = f"one exchange in L = {results['num_steps']} gradients"
    axis.set(ylabel="bytes sent per minibatch gradient", yscale="log", ylim=(10, top), title=title)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
