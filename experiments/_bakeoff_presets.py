"""The sizes of the bake-off: which tasks, how large, how many candidates and seeds."""

import dataclasses

from experiments._bakeoff_methods import PRESET_METHODS
from experiments._bakeoff_tasks import CharLSTM, SmallCNN, Spec
from jaxopt_pde.models import MLP, AllCNN, LeNet

__all__ = ["PRESETS", "Preset"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a preset stands for; every field can be overridden in the config."""

    tasks: dict[str, Spec]
    """By the name used on the command line."""
    methods: tuple[str, ...]
    """Of _bakeoff_methods.KNOWN."""
    candidates: int
    """Points of each method's own space that are tried, each with one seed."""
    seeds: int
    """Fresh seeds on test."""
    reports: int
    """Points of the curves."""


def _labels(spec: Spec, share: float) -> Spec:
    title = f"{spec.title}, {100 * share:.0f} % random labels"
    return dataclasses.replace(spec, title=title, random_labels=share, published="")


def _small(spec: Spec, gradients: int) -> Spec:
    sizes = (1000, *spec.sizes[1:])
    title = f"{spec.title}, 1,000 images"
    return dataclasses.replace(spec, title=title, sizes=sizes, gradients=gradients, published="")


def _family(mlp: Spec, lenet: Spec, small: tuple[int, int]) -> dict[str, Spec]:
    """Both networks on MNIST, with random labels, and with few images."""
    tasks = {}
    for name, spec, gradients in (("mnist-mlp", mlp, small[0]), ("mnist-lenet", lenet, small[1])):
        noisy = {f"{name}-{round(100 * share)}": _labels(spec, share) for share in (0.2, 0.4)}
        tasks |= {name: spec, **noisy, f"{name}-1000": _small(spec, gradients)}
    return tasks


DIGITS = Spec("digits, CNN", "digits", SmallCNN(8), (900, 350, 547), 64, 1200, 0.3)
MNIST_1D = Spec("MNIST-1D, MLP", "mnist-1d", MLP((64, 64)), (3000, 1000, 1000), 64, 2000, 0.05)
LANGUAGE = Spec("characters, LSTM", "language", CharLSTM(32), (2000, 200, 1000), 32, 800, 2.0)

SMALL_MNIST = _family(
    Spec("MNIST, MLP", "mnist", MLP((100, 100)), (10_000, 2000, 5000), 64, 2000, 0.35),
    Spec("MNIST, LeNet", "mnist", LeNet(channels=(6, 12), hidden=48), (10_000, 1000, 2000), 32, 800, 2.0),
    small=(1200, 400),
)
LARGE_MNIST = _family(
    Spec(
        "MNIST, MLP 2 × 1024", "mnist", MLP((1024, 1024), batch_norm=True, dropout_rate=0.15),
        (55_000, 5000, 0), 128, 24_000, 0.0, published="mnistfc",
    ),
    Spec("MNIST, LeNet", "mnist", LeNet(), (55_000, 5000, 0), 128, 40_000, 0.0, published="LeNet"),
    small=(4000, 4000),
)  # fmt: skip
CIFAR = {
    "cifar10-cnn": Spec("CIFAR-10, small CNN", "cifar10", SmallCNN(32), (45_000, 5000, 0), 128, 20_000, 0.0),
    "cifar10-allcnn": Spec(
        "CIFAR-10, All-CNN", "cifar10", AllCNN(), (45_000, 5000, 0), 128, 56_000, 0.0, lanes=3, published="All-CNN"
    ),
}  # fmt: skip

PRESETS = {
    "smoke": Preset(
        {
            "mnist-1d": dataclasses.replace(
                MNIST_1D, title="MNIST-1D, linear", network=MLP(()), sizes=(200, 100, 100), batch_size=16, gradients=80
            )
        },
        methods=("SGD, cosine", "SAM"),
        candidates=2,
        seeds=2,
        reports=2,
    ),
    "cpu": Preset(
        {
            "digits-cnn": DIGITS,
            **{name: spec for name, spec in SMALL_MNIST.items() if name not in ("mnist-lenet-20", "mnist-lenet-40")},
            "mnist-1d": MNIST_1D,
            "char-lstm": LANGUAGE,
        },
        methods=PRESET_METHODS,
        candidates=8,
        seeds=6,
        reports=10,
    ),
    "full": Preset(
        {
            "digits-cnn": dataclasses.replace(DIGITS, gradients=2400),
            **LARGE_MNIST,
            "mnist-1d": dataclasses.replace(MNIST_1D, gradients=8000),
            "char-lstm": dataclasses.replace(
                LANGUAGE, network=CharLSTM(128, 2), sizes=(20_000, 2000, 5000), gradients=8000, milliseconds=0.0
            ),
            **CIFAR,
        },
        methods=PRESET_METHODS,
        candidates=24,
        seeds=6,
        reports=20,
    ),
}  # fmt: skip
