"""The bake-off in two small tables, as the README has them: all methods on all tasks, the best of ours in detail."""

import numpy as np

from experiments import _run
from experiments._bakeoff_statistics import mean_ranks, paired
from experiments.quickstart import interval

__all__ = ["OURS", "best_of_ours", "summary"]

OURS = (
    "SALR", "accelerated SGD", "Entropy-SGD, K = 1", "Entropy-SGD, K = 4", "Entropy-Adam", "heat", "Hopf-Lax",
    "two time scales, K = 1", "two time scales, K = 4", "Lasry-Lions, NAdam", "Lasry-Lions, SGD", "Elastic-SGD",
    "Parle",
)  # fmt: skip
"""The methods that this package implements; the others are optax's own."""
AGAINST = ("SGD, cosine", "SAM")


def best_of_ours(results: _run.Arrays) -> str | None:
    """The method of ours with the least mean rank; None if none of ours ran."""
    names = list(map(str, results["method"]))
    order = np.argsort(mean_ranks(results["test_error"][..., -1].mean(-1)), kind="stable")
    return next((names[m] for m in order if names[m] in OURS), None)


def summary(results: _run.Arrays) -> str:
    """Markdown: test errors with 95 % intervals by mean rank, least in bold; then paired differences of our best."""
    return "\n\n".join([_errors(results), *_differences(results)]) + "\n"


def _errors(results: _run.Arrays) -> str:
    final = results["test_error"][..., -1]
    mean = mean_ranks(final.mean(-1))
    heads = [f"{title} ({unit})" for title, unit in zip(results["title"], results["unit"], strict=True)]
    rows = []
    least = final.mean(-1).min(1)
    for m in np.argsort(mean, kind="stable"):
        cells = []
        for t, factor in enumerate(results["factor"]):
            text = f"{factor * final[t, m].mean():.2f} ± {factor * interval(final[t, m]):.2f}"
            cells.append(f"**{text}**" if final[t, m].mean() == least[t] else text)
        name = str(results["method"][m])
        rows.append([f"*{name}*" if name in OURS else name, f"{mean[m]:.1f}", *cells])
    return _markdown(["method", "mean rank", *heads], rows)


def _differences(results: _run.Arrays) -> list[str]:
    """Our best method less each of AGAINST on every task, seed by seed; bold where the interval excludes 0."""
    names, best = list(map(str, results["method"])), best_of_ours(results)
    others = [name for name in AGAINST if name in names and name != best]
    if best is None or not others:
        return []
    final, rows, tally = results["test_error"][..., -1], [], {name: [0, 0] for name in others}
    for t, factor in enumerate(results["factor"]):
        row = [f"{results['title'][t]} ({results['unit'][t]})"]
        for name in others:
            test = paired(factor * final[t, [names.index(name), names.index(best)]], 0)
            difference, half = test.difference[1], test.half_width[1]
            clear = abs(difference) > half
            tally[name][0] += bool(clear and difference < 0)
            tally[name][1] += bool(clear and difference > 0)
            text = f"{difference:+.2f} ± {half:.2f}"
            row.append(f"**{text}**" if clear else text)
        rows.append(row)
    counts = [f"{better} better, {worse} worse" for better, worse in tally.values()]
    rows.append([f"clear of 0, of {len(final)}", *counts])
    return [_markdown(["task", *(f"{best} less {name}" for name in others)], rows)]


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
