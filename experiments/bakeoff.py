"""The bake-off: optimisers at equal numbers of gradients, each tuned in its own space, on real tasks.

Every method spends the same number of minibatch gradients on a task: a step of SAM costs two of them, one of
Entropy-SGD L·K, and the n-th gradient of a seed uses the same minibatch in every method. Every method has its own
space of hyper-parameters, and the same number of quasi-random points of it are tried, each with one seed; the one of
least validation error at the end (ties: least validation loss) is trained again from fresh seeds, and only these
trainings meet the test set. Labels of validation and test are true where those of training are random. A run whose
loss stops being finite counts as chance from there on and is never dropped. Evaluated are the weights that each
method means to be used: averages, slow weights, anchors.

The preset "cpu" tries 8 candidates and tests 6 seeds: 14 trainings of each of the 24 methods on each of 9 tasks, 336 a
task. Measured on one core, a gradient takes 0.3 ms on the digits, 0.35 ms with the MLP on MNIST, 2 ms with its LeNet,
0.05 ms on MNIST-1D and 2 ms with the LSTM. With 1,200 gradients on the digits, 2,000 (1,200 on few images) with the
MLP, 800 (400) with LeNet, 2,000 on MNIST-1D and 800 with the LSTM that is 7 s for one training of each, 2,350 s for 336
of them. Compiling 216 programs at about 6 s adds 1,300 s and evaluating about 600 s: 4,250 s of one core, so about 40
minutes on two, on which two tasks run at a time. The gradients are printed before anything runs. The preset "full" has
the papers' networks and wants an accelerator. ``--tasks``, ``--methods``, ``--candidates``, ``--seeds``,
``--gradients`` and ``--reports`` override a preset. Each pair of task and method is kept when it is tuned and again
when it is tested, so an interrupted run loses at most one of these a thread.

What came out, by the mean of the ranks on the nine tasks: AdamW 6.7, Lasry-Lions with NAdam 8.0, schedule-free AdamW
8.3, Lasry-Lions with SGD 8.8, Adam and Entropy-Adam 9.1, Entropy-SGD with one chain 10.1, SGD with a cosine 11.0, SAM
12.7; among the last are the methods that spread their gradients over four chains or replicas. So our best method is
not first. Against SAM it is better beyond the interval on six tasks and worse on one, against SGD better on one and
worse on one; it is at SGD's final error after 20 to 80 per cent of the gradients on seven tasks and never on MNIST-1D
and on the language. With 40 per cent of the labels random Entropy-SGD with one chain is best, 7.90 ± 0.21 per cent
against 8.53 ± 0.27 (SGD) and 8.30 ± 0.29 (SAM), and on MNIST-1D Lasry-Lions with SGD, 34.8 ± 1.7.

How we came to it: ``lasry_lions``, its pull and the ranges of its search were chosen on other splits and random labels
(``--seed 1``), by validation errors. A first run of this comparison then showed it to lose on the shortest trainings,
and the methods with constant steps to lose everywhere; its average was made to grow with the training, again on those
splits, Entropy-SGD and its relatives were given SGD's cosine, and these methods were run again. So they had a second
chance, and the others did not.

In the table, differences are paired seed by seed, with 95 % intervals and p-values adjusted by Holm over the methods
of a task; the target is the mean final error of SGD with Nesterov momentum and a cosine schedule. With six seeds
Wilcoxon's p-value is at least 1/32 before the correction, so only the t-test can decide there.
"""

import dataclasses
import functools
import io
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np

from experiments import _bakeoff_methods, _run
from experiments import _bakeoff_report as reporting
from experiments._bakeoff_methods import Method
from experiments._bakeoff_presets import PRESETS, Preset
from experiments._bakeoff_spaces import candidates
from experiments._bakeoff_summary import summary
from experiments._bakeoff_tasks import make_task
from experiments._bakeoff_training import Program, Run, Trainer
from jaxopt_pde import _validate


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; None leaves it to the preset."""

    preset: str = "cpu"
    """``"smoke"`` (seconds), ``"cpu"`` (under an hour on two cores) or ``"full"`` (accelerator)."""
    tasks: tuple[str, ...] | None = None
    """Which tasks of the preset."""
    methods: tuple[str, ...] | None = None
    """Which methods."""
    candidates: int | None = None
    """Points of each method's space that are tried."""
    seeds: int | None = None
    """Fresh seeds on test, at least 2."""
    gradients: int | None = None
    """Minibatch gradients that each training spends, on every task."""
    reports: int | None = None
    """Points of the curves; must divide the gradients into whole updates of every method."""
    seed: int = 0
    """Of splits, random labels, candidates and, with their indices, of all trainings."""
    threads: int = dataclasses.field(default=2, metadata={"hash": False})
    """Tasks that run at the same time; 1 where an accelerator does the work."""
    data_dir: str | None = dataclasses.field(default=None, metadata={"hash": False})
    """Where MNIST and CIFAR-10 lie; None reads the environment variable JAXOPT_PDE_DATA."""


SMOKE = Config(preset="smoke")

NOT_FINITE = ("test_loss", "validation_loss", "tuning_train_loss", "test_train_loss")
NOT_REPRODUCIBLE = ("tuning_seconds", "test_seconds")


def resolve(config: Config) -> tuple[Preset, list[Method]]:
    """The preset with the config's overrides, and its methods.

    Raises:
        ValueError: an unknown preset, task or method, counts that are too small, a report interval that is not a
            whole number of updates.
    """
    _validate.check_choice("preset", config.preset, tuple(PRESETS))
    preset = PRESETS[config.preset]
    given = {name: getattr(config, name) for name in ("methods", "candidates", "seeds", "reports")}
    preset = dataclasses.replace(
        preset, **{name: value for name, value in given.items() if value is not None}
    )
    for name in config.tasks or ():
        _validate.check_choice("tasks", name, tuple(preset.tasks))
    tasks = {name: preset.tasks[name] for name in config.tasks or preset.tasks}
    if config.gradients is not None:
        tasks = {name: dataclasses.replace(t, gradients=config.gradients) for name, t in tasks.items()}
    preset = dataclasses.replace(preset, tasks=tasks)
    _validate.check_count("candidates", preset.candidates)
    _validate.check_count("seeds", preset.seeds, minimum=2)
    _validate.check_count("reports", preset.reports)
    _validate.check_count("threads", config.threads)
    methods = _bakeoff_methods.named(preset.methods)
    for name, spec in tasks.items():
        for method in methods:
            if spec.gradients % (preset.reports * method.gradients_per_update):
                msg = (
                    f"gradients={spec.gradients} of task {name} must be a multiple of reports={preset.reports} times "
                    f"the {method.gradients_per_update} gradients of an update of {method.name}."
                )
                raise ValueError(msg)
    return preset, methods


def cost(config: Config) -> str:
    """What a config costs, task by task, in gradients and, where it was measured, in seconds of one core."""
    preset, methods = resolve(config)
    trainings = len(methods) * (preset.candidates + preset.seeds)
    lines, total, seconds = [], 0, 0.0
    for name, spec in preset.tasks.items():
        gradients = trainings * spec.gradients
        own = gradients * spec.milliseconds / 1000
        total, seconds = total + gradients, seconds + own
        measured = f", about {own:,.0f} s" if spec.milliseconds else ""
        lines.append(f"  {name}: {trainings} trainings of {spec.gradients:,} gradients{measured}")
    head = (
        f"{len(preset.tasks)} tasks, {len(methods)} methods, {preset.candidates} candidates, {preset.seeds} seeds: "
        f"{total:,} minibatch gradients"
    )
    tail = f"measured tasks: about {seconds:,.0f} s on one core, compilation and evaluation not counted"
    return "\n".join([head, *lines, tail])


def choose(tuning: _run.Arrays) -> int:
    """The candidate of least validation error at the end; ties go to the least validation loss."""
    loss = np.where(tuning["diverged"][-1], math.inf, tuning["loss"][-1])
    return int(np.lexsort((loss, tuning["error"][-1]))[0])


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Runs the grid; arrays begin with [task, method].

    Raises:
        ValueError: see :func:`resolve`.
        FileNotFoundError: the data of a task are not there; says how to leave it out.
    """
    preset, methods = resolve(config)
    if session is not _run.NULL_SESSION:
        print(cost(config), file=sys.stderr, flush=True)
    load = functools.partial(make_task, seed=config.seed, data_dir=config.data_dir)
    tasks = {name: load(name, spec) for name, spec in preset.tasks.items()}
    stop = threading.Event()

    # Small programs leave most of two cores idle. The longest tasks first, or one of them ends alone.
    longest = sorted(tasks, key=lambda name: -tasks[name].spec.gradients * tasks[name].spec.milliseconds)
    with (
        session.progress("bake-off", 2 * len(tasks) * len(methods)) as meter,
        ThreadPoolExecutor(config.threads) as pool,
    ):
        try:
            cells_of = lambda name: _cells(tasks[name], preset, methods, config.seed, session, meter, stop)
            found = dict(zip(longest, pool.map(cells_of, longest), strict=True))
        except BaseException:  # Ctrl-C: what is finished is kept
            stop.set()
            raise
    cells = [cell for name in tasks for cell in found[name]]
    shape = (len(tasks), len(methods))

    def gather(part: int, key: str, moved: bool = True) -> np.ndarray:
        arrays = [cell[part][key].T if moved else cell[part][key] for cell in cells]
        return np.stack(arrays).reshape(*shape, *arrays[0].shape)

    kept = list(tasks.values())
    gradients = [t.spec.gradients // preset.reports * np.arange(1, preset.reports + 1) for t in kept]
    return {
        "task": np.array(list(tasks)),
        "title": np.array([task.spec.title for task in kept]),
        "note": np.array([task.note for task in kept]),
        "published": np.array([task.spec.published for task in kept]),
        "unit": np.array([task.unit[1] for task in kept]),
        "factor": np.array([task.unit[0] for task in kept]),
        "chance": np.array([task.chance for task in kept]),
        "floor": np.array([task.floor for task in kept]),
        "method": np.array([method.name for method in methods]),
        "gradients_per_update": np.array([method.gradients_per_update for method in methods]),
        "gradients": np.stack(gradients),
        "hyperparameters": np.array([[json.dumps(point) for point in cell[0]] for cell in cells]).reshape(
            *shape, -1
        ),
        "chosen": np.array([cell[1] for cell in cells]).reshape(shape),
        "validation_error": gather(2, "error"),
        "validation_loss": gather(2, "loss"),
        "tuning_train_loss": gather(2, "train_loss"),
        "tuning_diverged": gather(2, "diverged"),
        "tuning_seconds": gather(2, "seconds", moved=False),
        "test_error": gather(3, "error"),
        "test_loss": gather(3, "loss"),
        "test_train_loss": gather(3, "train_loss"),
        "test_diverged": gather(3, "diverged"),
        "test_seconds": gather(3, "seconds", moved=False),
        "manifest": np.array(json.dumps(reporting.manifest(config, preset, methods), ensure_ascii=False)),
    }


def _cells(task, preset: Preset, methods: list[Method], seed: int, session, meter, stop) -> list[tuple]:
    """Of a task, for every method: its candidates, the index of the chosen one, what both stages gave."""
    done, lanes = [], min(task.spec.lanes, preset.candidates, preset.seeds)
    trainer = Trainer(task, task.spec.gradients, preset.reports, lanes, seed)
    for method in methods:
        if stop.is_set():
            break
        program = Program(trainer, method)
        space = candidates(method.name, method.space, preset.candidates, seed)
        points = [{key: float(values[c]) for key, values in space.items()} for c in range(preset.candidates)]
        tried = [Run(point, 0) for point in points]
        name = f"{task.name}, {method.name}, tuning"
        tune = functools.partial(program.train, tried, "tuning", task.validation, session.within(name))
        tuning = session.stage(name, tune)
        meter.advance(validation_error=tuning["error"][-1].min())
        best = choose(tuning)
        fresh = [Run(points[best], index) for index in range(preset.seeds)]
        name = f"{task.name}, {method.name}, test"
        test = functools.partial(program.train, fresh, "test", task.test, session.within(name))
        tested = session.stage(name, test)
        meter.advance(test_error=tested["error"][-1].mean())
        done.append((points, best, tuning, tested))
    return done


def files(results: _run.Arrays) -> dict[str, bytes]:
    """The tidy table as CSV and NPZ, the manifest that says what its columns are, and the README's two tables."""
    columns, stored = reporting.tidy(results), io.BytesIO()
    np.savez(stored, **columns)
    manifest = json.dumps(json.loads(str(results["manifest"])), indent=2, ensure_ascii=False)
    return {
        "runs.csv": reporting.as_csv(columns).encode(),
        "runs.npz": stored.getvalue(),
        "manifest.json": manifest.encode(),
        "summary.md": summary(results).encode(),
    }


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Mean ranks; then each task's errors, paired differences and costs; then what papers printed."""
    return reporting.table(results)


def figure(results: _run.Arrays) -> plt.Figure:
    """Test error against gradients on every task for six methods, and the ranks of all."""
    return reporting.figure(results)
