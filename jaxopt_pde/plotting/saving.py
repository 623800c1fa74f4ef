"""Figures to files."""

import os
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from .. import _validate

__all__ = ["save"]


def save(
    figure: Figure, stem: str | os.PathLike[str], *, vector: Literal["pdf", "svg"] = "pdf", dpi: float = 200.0
) -> tuple[Path, Path]:
    """Writes a figure as a vector file for papers and as a PNG for slides.

    Both are complete or not there: they are written beside their place and then moved to it, after both have
    succeeded. The same figure gives the same bytes (no dates inside), and text stays text.

    Args:
        figure: what to write.
        stem: path without ending; ``.pdf`` (or ``.svg``) and ``.png`` are added. Missing folders are made.
        vector: the vector format.
        dpi: of the PNG and of what is drawn as pixels in the vector file, in dots an inch.

    Returns:
        The paths of the vector file and of the PNG.

    Raises:
        ValueError, TypeError: an unknown format, a resolution that is not positive.

    Example:
        >>> import pathlib, tempfile
        >>> from matplotlib.figure import Figure
        >>> from jaxopt_pde import plotting
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = plotting.save(Figure(), pathlib.Path(folder) / "slice", dpi=50)
        ...     print([path.name for path in paths])
        ['slice.pdf', 'slice.png']
    """
    _validate.check_choice("vector", vector, ("pdf", "svg"))
    _validate.check_positive("dpi", dpi)
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    written = {}
    try:
        with matplotlib.rc_context(
            {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "jaxopt_pde"}
        ):
            for kind in (vector, "png"):
                path = stem.with_name(f"{stem.name}.{kind}")
                part = stem.with_name(f".{path.name}.{os.getpid()}.part")
                written[path] = part
                figure.savefig(part, format=kind, dpi=dpi, metadata=undated[kind], bbox_inches="tight")
        for path, part in written.items():
            part.replace(path)
    finally:
        for part in written.values():
            part.unlink(missing_ok=True)
    return tuple(written)
