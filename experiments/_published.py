"""The numbers that papers and talks printed, from the JSON files of ``experiments/published``."""

import json
from pathlib import Path
from typing import NamedTuple

from jaxopt_pde import _validate

__all__ = ["NAMES", "Published", "published"]

FOLDER = Path(__file__).parent / "published"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


class Published(NamedTuple):
    """One table.

    Attributes:
        source: where the numbers stand.
        status: how they were read, and what to doubt.
        columns: names of the cells of a row, with units.
        rows: texts and numbers; None where the source has none.
    """

    source: str
    status: str
    columns: list[str]
    rows: list[list[str | float | None]]

    def where(self, **cells: str | float) -> list[dict[str, str | float | None]]:
        """The rows whose columns have these values, each as a dict."""
        rows = (dict(zip(self.columns, row, strict=True)) for row in self.rows)
        return [row for row in rows if all(row[name] == value for name, value in cells.items())]


def published(name: str) -> Published:
    """Reads one table.

    Args:
        name: of :data:`NAMES`.

    Raises:
        ValueError: for another name.

    Example:
        >>> published("deep_relaxation").where(model="All-CNN", method="HJB")[0]["test error %"]
        7.82
    """
    _validate.check_choice("name", name, NAMES)
    return Published(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
