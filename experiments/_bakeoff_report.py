"""What the bake-off shows: tidy columns, manifest, table, figure."""

import csv
import dataclasses
import importlib.metadata
import io

import matplotlib.pyplot as plt
import numpy as np

from experiments import _run
from experiments._bakeoff_statistics import first_reached, mean_ranks, paired, ranks
from experiments._published import published
from experiments.quickstart import interval

__all__ = ["as_csv", "figure", "manifest", "table", "tidy"]

REFERENCES = ("SGD, cosine", "SAM")
COLUMNS = {
    "task": "name in the preset",
    "method": "name of the optimiser",
    "stage": "tuning (errors on the validation set) or test (on the test set)",
    "run": "index of the candidate in tuning, of the seed in test",
    "hyperparameters": "JSON, traced numbers of the method",
    "chosen": "whether these hyper-parameters are those tested",
    "gradients": "minibatch gradients spent by this run",
    "seconds": "measured time of a run so far, batched, without compiling and evaluating, another task beside it",
    "error": "share misclassified, nats per character for texts; chance level from where the run diverged",
    "loss": "mean cross-entropy of the same examples, nats",
    "train_loss": "of up to 500 training examples with the labels that are trained on, nats",
    "diverged": "whether a loss was not finite up to here",
}


def manifest(config, preset, methods) -> dict:
    """What was run: settings, tasks, spaces of the methods, seeds, versions, meaning of the columns."""
    packages = ("jaxopt_pde", "jax", "jaxlib", "optax", "flax", "numpy", "scipy")
    spec = lambda task: dataclasses.asdict(task) | {"network": " ".join(repr(task.network).split())}
    law = lambda l: f"one of {l.values}" if hasattr(l, "values") else f"log-uniform in {(l.low, l.high)}"
    return {
        "what": "Optimisers compared at equal numbers of minibatch gradients: experiments/bakeoff.py",
        "config": _run.hashed_fields(config),
        "candidates": preset.candidates,
        "seeds": {"all": config.seed, "tuning": [0], "test": list(range(preset.seeds))},
        "tasks": {name: spec(task) for name, task in preset.tasks.items()},
        "methods": {
            m.name: {
                "gradients per update": m.gradients_per_update,
                "space": {name: law(l) for name, l in m.space.items()},
            }
            for m in methods
        },
        "columns": COLUMNS,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def tidy(results: _run.Arrays) -> dict[str, np.ndarray]:
    """One row a report of a run: the columns of COLUMNS."""
    rows = []
    for t, task in enumerate(results["task"]):
        for m, method in enumerate(results["method"]):
            best = results["chosen"][t, m]
            for stage, measured in (("tuning", "validation"), ("test", "test")):
                errors, losses = results[f"{measured}_error"][t, m], results[f"{measured}_loss"][t, m]
                for r, n in np.ndindex(errors.shape):
                    point = best if stage == "test" else r
                    rows.append(
                        (
                            str(task), str(method), stage, r, str(results["hyperparameters"][t, m, point]),
                            bool(point == best), int(results["gradients"][t, n]),
                            float(results[f"{stage}_seconds"][t, m, n]), float(errors[r, n]), float(losses[r, n]),
                            float(results[f"{stage}_train_loss"][t, m, r, n]),
                            bool(results[f"{stage}_diverged"][t, m, r, n]),
                        )
                    )  # fmt: skip
    return {name: np.array(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}


def as_csv(columns: dict[str, np.ndarray]) -> str:
    """Comma-separated, with a head; numbers as Python writes them, so that they come back as they were."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return text.getvalue()


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _differences(results: _run.Arrays, task: int, errors: np.ndarray) -> list[list[str]]:
    """For each method a cell per reference: difference, interval, both p-values."""
    names, cells = list(map(str, results["method"])), [[] for _ in results["method"]]
    for reference in REFERENCES:
        test = paired(errors, names.index(reference)) if reference in names else None
        for m, name in enumerate(names):
            if test is None or name == reference:
                cells[m].append("–")
                continue
            difference = f"{test.difference[m]:+.2f} ± {test.half_width[m]:.2f}"
            cells[m].append(f"{difference} (t {_p(test.t_test[m])}, W {_p(test.wilcoxon[m])})")
    return cells


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Mean ranks; then each task's errors, paired differences and costs; then what papers printed."""
    headers = [
        "task", "method", "rank", "test error", "less SGD, cosine (Holm p)", "less SAM (Holm p)",
        "to target: gradients, seconds", "ms a gradient", "diverged: tuning, test",
    ]  # fmt: skip
    names, final = list(map(str, results["method"])), results["test_error"][..., -1]
    mean, rows = mean_ranks(final.mean(-1)), []
    for m in np.argsort(mean, kind="stable"):
        rows.append([f"all {len(final)}", names[m], f"{mean[m]:.2f}", *["–"] * (len(headers) - 3)])
    for t, task in enumerate(map(str, results["task"])):
        errors, unit = results["factor"][t] * final[t], results["unit"][t]
        place, differences = ranks(final[t].mean(-1)[None])[0], _differences(results, t, errors)
        spent = _to_target(results, t)
        for m in np.argsort(place, kind="stable"):
            lost = [results[f"{stage}_diverged"][t, m, :, -1] for stage in ("tuning", "test")]
            per_gradient = 1000 * results["test_seconds"][t, m, -1] / results["gradients"][t, -1]
            rows.append(
                [
                    task,
                    names[m],
                    f"{place[m]:g}",
                    f"{errors[m].mean():.2f} ± {interval(errors[m]):.2f} {unit}",
                    *differences[m],
                    "–" if np.isnan(spent[0][m]) else f"{spent[0][m]:.0f}, {spent[1][m]:.3g}",
                    f"{per_gradient:.3g}",
                    ", ".join(f"{part.sum()} of {len(part)}" for part in lost),
                ]
            )
        if results["floor"][t]:
            floor = f"{results['factor'][t] * results['floor'][t]:.2f} {unit}"
            rows.append([task, "(no method can be below)", "–", floor, *["–"] * (len(headers) - 4)])
    return headers, rows + [[*row, *["–"] * (len(headers) - 4)] for row in _printed(results)]


def _to_target(results: _run.Arrays, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and seconds at which each method's mean error is first at most the reference's last one."""
    curves, names = results["test_error"][task].mean(1), list(map(str, results["method"]))
    if REFERENCES[0] not in names:
        return np.full(len(names), np.nan), np.full(len(names), np.nan)
    target = curves[names.index(REFERENCES[0]), -1]
    return (
        first_reached(curves, results["gradients"][task], target),
        first_reached(curves, results["test_seconds"][task], target),
    )


def _printed(results: _run.Arrays) -> list[list[str]]:
    """The papers' rows for the models compared: where, method, –, error."""
    models, rows = [str(model) for model in results["published"] if model], []
    for model in models:
        for row in published("entropy_sgd").where(model=model):
            for name, error in (("Entropy-SGD", "Entropy-SGD"), (row["baseline"], "baseline")):
                value, half = (row["Entropy-SGD"], row["+-"]) if name == error else (
                    row["baseline value"], row["baseline +-"])  # fmt: skip
                rows.append([f"{model}, Entropy-SGD paper", name, "–", f"{value:g} ± {half:g} %"])
        for row in published("deep_relaxation").where(model=model):
            text = f"{row['test error %']:g} ± {row['+-']:g} %"
            rows.append([f"{model}, Deep Relaxation notes", row["method"], "–", text])
        for row in published("parle").where(model=model):
            where = f"{model}, {row['data']}, Parle paper, {row['train share %']} % of the data each"
            rows.append([where, row["method"], "–", f"{row['test error %']:g} %"])
    return rows


SHOWN = {
    "SGD, cosine": "#000000", "SAM": "#009e73", "SGD, EMA": "#56b4e9", "AdamW": "#808080",
    "Entropy-SGD, K = 1": "#d55e00", "Lasry-Lions, NAdam": "#cc79a7",
}  # fmt: skip
"""Methods with a curve, Okabe and Ito's colours; others are in the table."""
LINE_POINTS = 14.0


def figure(results: _run.Arrays) -> plt.Figure:
    """Test error against gradients on every task for six methods, and the ranks of all."""
    names, count = list(map(str, results["method"])), len(results["task"])
    columns = min(3, count)
    lines = -(-count // columns)
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        height = max(2.9 * lines, LINE_POINTS / 72 * (len(names) + 2)) + 0.5
        fig = plt.figure(figsize=(3.5 * columns + 2.6, height), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        grid = fig.add_gridspec(lines, columns + 1, width_ratios=[3.5] * columns + [2.6])
        panels = [fig.add_subplot(grid[divmod(t, columns)]) for t in range(count)]
        for t, panel in enumerate(panels):
            _draw_task(panel, results, t)
        _draw_ranks(fig.add_subplot(grid[:, -1]), results)
        handles, labels = panels[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return fig


def _draw_task(axis, results: _run.Arrays, task: int) -> None:
    """Means and 95 % bands over the seeds; dashed, what no method can go below."""
    names, factor = list(map(str, results["method"])), results["factor"][task]
    at, lowest, highest = results["gradients"][task], np.inf, 0.0
    for name, colour in SHOWN.items():
        if name not in names:
            continue
        errors = factor * results["test_error"][task, names.index(name)].T
        mean, half = errors.mean(-1), interval(errors)
        axis.plot(at, mean, color=colour, label=name, linewidth=1.6)
        axis.fill_between(
            at, np.maximum(mean - half, mean / 2), mean + half, color=colour, alpha=0.12, linewidth=0
        )
        lowest, highest = min(lowest, mean.min()), max(highest, mean[len(mean) // 4 :].max())
    if results["floor"][task]:
        axis.axhline(factor * results["floor"][task], color="#777777", linestyle="--", linewidth=1)
        lowest = min(lowest, factor * results["floor"][task])
    axis.set(title=str(results["title"][task]), xlabel="minibatch gradients", xlim=(0, at[-1]))
    unit = results["unit"][task]
    axis.set_ylabel("test error (%)" if unit == "%" else f"test cross-entropy ({unit})")
    if np.isfinite(lowest):  # from the second quarter on: all begin near chance
        axis.set_ylim(
            max(0.0, lowest - 0.08 * (highest - lowest)), highest + 0.08 * (highest - lowest) + 1e-9
        )


def _draw_ranks(axis, results: _run.Arrays) -> None:
    """All methods by mean rank over the tasks."""
    mean = mean_ranks(results["test_error"][..., -1].mean(-1))
    names = list(map(str, results["method"]))
    axis.set_axis_off()
    axis.set_title("mean rank", loc="left")
    for row, m in enumerate(np.argsort(mean, kind="stable")):
        style = {"color": SHOWN.get(names[m], "#444444"), "va": "top", "textcoords": "offset points"}
        for x, text, side in ((24, f"{mean[m]:.1f}", "right"), (32, names[m], "left")):
            axis.annotate(text, (0, 1), (x, -LINE_POINTS * row), xycoords="axes fraction", ha=side, **style)
