"""What every process of a training with Parle must be told alike.

Imports neither JAX nor NumPy, so that a wrong start is told at once.
"""

import dataclasses
from typing import Any

__all__ = ["METHODS", "PARLE", "SGD", "Settings"]

PARLE, SGD = METHODS = ("Parle", "data-parallel SGD")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One training of each method: the same data, initial weights and number of gradients."""

    seed: int = 0
    """Seeds the split of the data, the initial weights and the minibatches."""
    num_replicas: int = 4
    """R replicas of Parle, and R minibatches in a step of data-parallel SGD; a multiple of the devices."""
    num_steps: int = 25
    """L, gradients of a replica between two exchanges of Parle."""
    num_updates: int = 40
    """Exchanges of Parle: each method spends R · L · num_updates minibatch gradients."""
    report_every: int = 4
    """Updates of Parle (L steps of SGD each) between two points of the curves, and between two checkpoints."""
    batch_size: int = 16
    """Examples in the minibatch of one replica, drawn with replacement."""
    features: tuple[int, ...] = (128,)
    """Hidden widths of the network."""
    parle_rate: float = 0.3
    """Inner learning rate ε of Parle, decayed by a cosine to 0."""
    sgd_rate: float = 0.3
    """Learning rate of SGD, decayed likewise."""
    momentum: float = 0.9
    """Nesterov momentum of SGD, and heavy ball m of Parle within an update."""
    time_per_rate: float = 80.0
    """Parle: smoothing time t over ε; L ≈ 3 t (1 − m)/ε."""
    coupling: float = 3.0
    """Parle: coupling time ρ over t. The outer step 1/(1/t + 1/ρ) moves a replica to the mean of its chain's mean and
    the consensus, with weights ρ and t."""

    def __post_init__(self):
        """Refuses what could not be trained.

        Raises:
            ValueError: for a count below 1, or ``report_every`` that does not divide ``num_updates``.
        """
        for name in ("num_replicas", "num_steps", "num_updates", "report_every", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}."
                raise ValueError(msg)
        if self.num_updates % self.report_every:
            msg = f"report_every={self.report_every} must divide num_updates={self.num_updates}."
            raise ValueError(msg)

    @property
    def num_reports(self) -> int:
        """Points of a curve."""
        return self.num_updates // self.report_every

    @property
    def gradients_per_report(self) -> int:
        """Minibatch gradients, of all replicas together, between two points of a curve."""
        return self.report_every * self.num_steps * self.num_replicas

    def rate(self, method: str) -> float:
        """The learning rate of a method."""
        return {PARLE: self.parle_rate, SGD: self.sgd_rate}[method]

    def check_processes(self, num_devices: int) -> None:
        """Raises ValueError unless the replicas spread evenly over that many devices."""
        if self.num_replicas % num_devices:
            msg = f"num_replicas={self.num_replicas} must be a multiple of {num_devices}, the devices of all processes."
            raise ValueError(msg)

    def as_json(self) -> dict[str, Any]:
        """The fields, tuples as lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Settings":
        """Inverse of :meth:`as_json`; fields left out keep their defaults.

        Raises:
            TypeError: for a field there is not.
        """
        return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
