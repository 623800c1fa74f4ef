"""What devices say to each other per gradient: counted in compiled programs, and predicted for 8 to 1,024 accelerators.

Each method is compiled for 1, 2, 4 and 8 devices and its collectives are read from the program: kinds, bytes, and how
often each runs. These are counts and not seconds, so eight CPU devices on any number of cores will do. A *gradient
step* is one gradient on each device, of all its chains at once; bytes are those that one device sends with the ring
algorithm, in units of the model's own. Data-parallel SGD sends 2 (n − 1)/n models a gradient step. Entropy-SGD with
its chains over the devices, and Parle with its replicas, send that once in L = 25 of them, whether the number of
chains is fixed (strong scaling) or grows with the devices (weak scaling); the control variate averages three trees
and sends three times as much. With chains and data on two axes of a mesh each gradient is also averaged over the data
axis. Minibatches lie with their chains and are looked up by `InnerStep.batch`; two subscripts, `batches[step, chain]`,
send them around instead, the mistake to avoid.

The times are predictions, not measurements: the counted bytes, scaled to a model of another size, through the
formulas of ring and tree on links of published peak speed (``published/link_speeds.json`` has the sources), with
nothing overlapped with computation. Whatever else is in a step, at equal gradients a message sent once in L costs
1/L of the time, latency included; it does not make gradients themselves scale.
"""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np

from experiments import _link_times, _run, _sharded_programs
from experiments._collectives import KINDS, Collective, collectives, ring_bytes
from jaxopt_pde import _validate

SGD, CHAINS, CONTROLLED, PARLE = (
    "SGD, data-parallel",
    "Entropy-SGD, K/n fixed",
    "Entropy-SGD, control variate",
    "Parle, R/n fixed",
)
PREDICTED = (SGD, CHAINS, CONTROLLED, PARLE)
MODELS = {"ResNet-50": 25_557_032, "1 B parameters": 1_000_000_000}
"""Parameters; ResNet-50's are those of torchvision.models.resnet50."""
COLOURS = {  # Okabe & Ito
    SGD: "#0072b2",
    "Entropy-SGD, K fixed": "#d55e00",
    CHAINS: "#d55e00",
    CONTROLLED: "#e69f00",
    "Entropy-SGD, chains × data": "#cc79a7",
    "Entropy-SGD, batches[step, chain]": "#000000",
    "Parle, R fixed": "#009e73",
    PARLE: "#009e73",
    "path integral": "#56b4e9",
    "landscape slice": "#808080",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The programs, and where their times are predicted."""

    programs: tuple[str, ...] = tuple(_sharded_programs.PROGRAMS)
    """Which to compile; the four whose times are predicted must be among them."""
    device_counts: tuple[int, ...] = (1, 2, 4, 8)
    """Virtual CPU devices, divisors of ``copies``."""
    num_steps: int = 25
    """Gradient steps L of one call; Parle's paper has 25."""
    copies: int = 16
    """Chains or replicas in all, rollouts, where their number is fixed."""
    copies_per_device: int = 2
    """Chains or replicas of each device, where that is fixed."""
    batch_size: int = 64
    """Examples of a gradient; the larger they are, the dearer a batch sent to the wrong device."""
    accelerators: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    """Where times are predicted."""


SMOKE = Config(programs=(*PREDICTED, "landscape slice"), device_counts=(8,), num_steps=5)


def run(config: Config, session: _run.Session = _run.NULL_SESSION) -> _run.Arrays:
    """Counts [program, devices] and predicted seconds a gradient step [dtype, fabric, model, method, accelerators]."""
    for name in config.programs:
        _validate.check_choice("programs", name, tuple(_sharded_programs.PROGRAMS))
    if missing := set(PREDICTED) - set(config.programs):
        msg = f"programs must hold {', '.join(sorted(missing))}, whose times are predicted."
        raise ValueError(msg)
    _sharded_programs.cpu_devices(max(config.device_counts))
    sizes = _sharded_programs.Sizes(
        config.num_steps, config.copies, config.copies_per_device, config.batch_size
    )
    with session.progress("compiling", len(config.programs) * len(config.device_counts)) as meter:
        found = [
            [count(name, devices, sizes, session, meter) for devices in config.device_counts]
            for name in config.programs
        ]
    longest = max(len(stage["collectives"]) for row in found for stage in row)
    padded = lambda array: np.pad(array, ((0, longest - len(array)), (0, 0)))
    results = {
        "program": np.array(config.programs),
        "devices": np.array(config.device_counts),
        "gradient_steps": np.array([[stage["gradient_steps"] for stage in row] for row in found]),
        "collectives": np.array([[padded(stage["collectives"]) for stage in row] for row in found]),
        "model_bytes": np.array(4 * _sharded_programs.num_params()),
        "accelerators": np.array(config.accelerators),
        "fabric": np.array(list(_link_times.FABRICS)),
        "model": np.array(list(MODELS)),
        "method": np.array(PREDICTED),
    }
    return results | {"predicted_seconds": predict(results)}


def count(name: str, devices: int, sizes, session: _run.Session, meter) -> _run.Arrays:
    """The collectives of one program: rows of (kind, bytes, times, group size), the kind counted from 1."""

    def compiled():
        program = _sharded_programs.compile_program(name, devices, sizes)
        rows = [
            (1 + KINDS.index(found.kind), found.num_bytes, found.times, found.group_size)
            for found in collectives(program.compiled)
        ]
        return {
            "collectives": np.array(rows, np.int64).reshape(-1, 4),
            "gradient_steps": np.array(program.gradient_steps),
        }

    stage = session.stage(f"{name}, {devices}", compiled)
    meter.advance(sent=len(stage["collectives"]))
    return stage


def found_in(results: _run.Arrays, name: str, place: int) -> tuple[list[Collective], int]:
    """The collectives of a program at one of the device counts, and its gradient steps."""
    index = list(results["program"]).index(name)
    rows = results["collectives"][index, place]
    return (
        [Collective(KINDS[row[0] - 1], *map(int, row[1:])) for row in rows if row[0]],
        int(results["gradient_steps"][index, place]),
    )


def models_per_step(results: _run.Arrays, name: str) -> np.ndarray:
    """What one device sends in a gradient step, in models, for every number of devices."""
    totals = []
    for place in range(len(results["devices"])):
        found, steps = found_in(results, name, place)
        totals.append(sum(map(ring_bytes, found)) / steps / results["model_bytes"])
    return np.array(totals)


def predict(results: _run.Arrays) -> np.ndarray:
    """Seconds a gradient step [dtype, fabric, model, method, accelerators], from the counts at the most devices.

    With bfloat16 params SGD sends bfloat16 gradients; Parle and the chains average in float32 all the same, which is
    what the accumulators are unless ``accumulator_dtype`` says otherwise.
    """
    last = int(np.argmax(results["devices"]))
    seconds = np.zeros((2, len(results["fabric"]), len(MODELS), len(PREDICTED), len(results["accelerators"])))
    for index in np.ndindex(seconds.shape):
        half, fabric, model, method, place = index
        found, steps = found_in(results, PREDICTED[method], last)
        width = 2 if half and PREDICTED[method] == SGD else 4
        size = width * list(MODELS.values())[model]
        seconds[index] = seconds_per_step(
            found,
            steps,
            size / results["model_bytes"],
            int(results["model_bytes"]),
            int(results["accelerators"][place]),
            _link_times.fabric(results["fabric"][fabric]),
        )
    return seconds


def seconds_per_step(
    found: list[Collective],
    steps: int,
    scale: float,
    model_bytes: int,
    accelerators: int,
    fabric: _link_times.Fabric,
) -> float:
    """Predicted seconds of communication in one gradient step, nothing overlapped.

    Args:
        found: the all-reduces of one call.
        steps: gradient steps of the call.
        scale: bytes of the model of interest over those of the compiled one; counters and flags keep their size.
        model_bytes: of the compiled one.
        accelerators: how many take part.
        fabric: what joins them.

    Raises:
        ValueError: for a collective of another kind, whose formula is not here.
    """
    seconds = 0.0
    for collective in found:
        if collective.kind != "all-reduce":
            msg = f"only all-reduces are predicted, got {collective.kind!r}."
            raise ValueError(msg)
        trees = collective.num_bytes // model_bytes  # what is left over are scalars
        num_bytes = trees * model_bytes * scale + collective.num_bytes % model_bytes
        seconds += collective.times * _link_times.all_reduce_seconds(num_bytes, accelerators, fabric)
    return seconds / steps


def table(results: _run.Arrays) -> tuple[list[str], list[list[str]]]:
    """Counts for every program and number of devices, then the predictions."""
    headers = ["what", "n", "collectives a call", "models a gradient step", "what is sent, or predicted"]
    rows = []
    for name in results["program"]:
        ratio = models_per_step(results, name)
        for place, devices in enumerate(results["devices"]):
            found, _ = found_in(results, name, place)
            sent = [f"{f.times} × {f.kind} of {f.num_bytes:,} B among {f.group_size}" for f in found]
            times = sum(f.times for f in found)
            rows.append([name, f"{devices}", f"{times}", f"{ratio[place]:.3g}", "; ".join(sent) or "nothing"])
    chosen = sorted({0, len(results["accelerators"]) // 2, len(results["accelerators"]) - 1})
    for fabric, model, place in (
        (f, m, c) for m in range(2) for f in range(len(results["fabric"])) for c in chosen
    ):
        full, half = results["predicted_seconds"][:, fabric, model, :, place] * 1e3
        text = "; ".join(f"{name} {ms:.3g} ms" for name, ms in zip(results["method"], full, strict=True))
        text += f"; SGD in bfloat16 {half[list(results['method']).index(SGD)]:.3g} ms"
        what = f"{results['model'][model]}, {results['fabric'][fabric]}"
        rows.append([what, f"{results['accelerators'][place]}", "", "", text])
    return headers, rows


def figure(results: _run.Arrays) -> plt.Figure:
    """Counted bytes, and predicted times for two models."""
    fig, axes = plt.subplots(1, 3, figsize=(14.4, 5.2), layout="constrained", width_ratios=(1.25, 1, 1))
    _counted(axes[0], results)
    for model, axis in enumerate(axes[1:]):
        _predicted(axis, results, model)
    axes[1].set_ylabel("communication per gradient step [ms]")
    for letter, axis in zip("abc", axes, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(rf"$\bf{{{letter}}}$   {axis.get_title()}", loc="left", fontsize=11)
        axis.set_title("")
    return fig


def _counted(axis, results) -> None:
    """Bars for the most devices, dots for fewer."""
    order = sorted(results["program"], key=lambda name: models_per_step(results, name)[-1])
    for height, name in enumerate(order):
        ratio, colour = models_per_step(results, name), COLOURS[name]
        axis.barh(height, ratio[-1], height=0.62, color=colour, alpha=0.85)
        several = results["devices"] > 1
        axis.plot(ratio[several], np.full(several.sum(), height), "o", color="white", mec="black", ms=4.5)
        axis.text(ratio.max() * 1.3, height, f"{ratio[-1]:.2g}", va="center", fontsize=9.5)
    axis.set_yticks(range(len(order)), order)
    least, most = (models_per_step(results, name)[-1] for name in (order[0], order[-1]))
    axis.set(xscale="log", xlim=(least / 4, most * 5))
    axis.set_xlabel("sent by one device per gradient step [models]")
    devices = results["devices"]
    dots = ", ".join(str(n) for n in devices[devices > 1])
    axis.set_title(f"counted in compiled programs: {devices[-1]} devices (dots: {dots})")


STYLES = {"H100: NVLink 4, NDR InfiniBand": "-", "PCIe 5 cards, 100 GbE a node": (0, (5, 2)), "TPU v5p": ":"}


def _predicted(axis, results, model) -> None:
    n, steps = results["accelerators"], found_in(results, PARLE, 0)[1]
    names = {SGD: "data-parallel SGD", PARLE: "Parle, Entropy-SGD chains"}
    for (method, label), (fabric, style) in ((m, f) for m in names.items() for f in STYLES.items()):
        place = list(results["fabric"]).index(fabric), model, list(results["method"]).index(method)
        milliseconds = results["predicted_seconds"][(0, *place)] * 1e3
        axis.plot(n, milliseconds, color=COLOURS[method], ls=style, lw=2, label=f"{label}; {fabric}")
    axis.set(xscale="log", yscale="log", xlabel="accelerators")
    axis.set_xticks(n, [str(value) for value in n], fontsize=9)
    axis.minorticks_off()
    axis.grid(axis="y", lw=0.4, color="#cccccc")
    name = results["model"][model]
    axis.set_title(f"predicted: {name}, float32, $L = {steps}$")
    if model == 0:
        handles = [
            plt.Line2D([], [], color=COLOURS[method], lw=2.4, label=text) for method, text in names.items()
        ]
        handles += [plt.Line2D([], [], color="black", lw=1.6, ls=s, label=f) for f, s in STYLES.items()]
        axis.figure.legend(handles=handles, loc="outside lower right", ncols=5, frameon=False, fontsize=9)
