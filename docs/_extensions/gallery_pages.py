"""A page for every experiment, read from its file and not run; one without a figure stops the build."""

import ast
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from docstring_markup import convert, escape
from PIL import Image
from repository_pages import write_if_changed
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

WITHOUT_FIGURE: dict[str, str] = {}
"""Experiments that need no figure in ``docs/figures``, and why."""

OTHER_FIGURES = {"start": "docs/start.md draws it"}
"""Figures that no experiment makes."""

ROW = re.compile(r"^\| \[(\w+)\]\(figures/\w+\.png\) \| `[^`]+` \| (.*) \|$")
ITEM = re.compile(r"^- \*\*\[(.+?)\]\((.+?)\.(?:md|rst)\)\*\*: (.+)$", re.MULTILINE)
TABLE = re.compile(r"^\| figure \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)


class Experiment(NamedTuple):
    """What the file of an experiment says of itself.

    Attributes:
        name: of the file and of the command.
        title: first line of the docstring.
        introduction: the rest of it.
        settings: of its ``Config``: name, default as written, meaning.
    """

    name: str
    title: str
    introduction: list[str]
    settings: list[tuple[str, str, str]]


def read_experiment(path: Path) -> Experiment:
    """Parses one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = (ast.get_docstring(tree) or "").splitlines()
    settings = []
    for item in tree.body:
        if isinstance(item, ast.ClassDef) and item.name == "Config":
            for field, below in itertools.pairwise(item.body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    default = ast.unparse(field.value) if field.value else ""
                    settings.append((ast.unparse(field.target), default, " ".join(below.value.value.split())))
    return Experiment(path.stem, lines[0].rstrip("."), lines[1:], settings)


def claims(gallery: str) -> dict[str, str]:
    """What each figure shows, from the tables of ``gallery.md``."""
    rows = [row for table in TABLE.findall(gallery) for row in table.splitlines()]
    return {found[1]: found[2] for found in map(ROW.match, rows) if found}


def page(experiment: Experiment, claim: str, has_figure: bool) -> str:
    """The reStructuredText of one experiment: figure, command, what it is, settings, code."""
    name = experiment.name
    text = f"{experiment.title}\n{'=' * (len(experiment.title) + 2)}\n\n"
    if has_figure:
        text += f".. image:: /figures/{name}.png\n   :alt: {claim}\n\n"
    text += f".. code-block:: sh\n\n   python -m experiments run {name}\n\n"
    text += "\n".join(convert(experiment.introduction)).strip("\n") + "\n\n"
    if experiment.settings:
        text += ".. dropdown:: Settings and their defaults\n\n   .. list-table::\n      :header-rows: 1\n\n"
        text += "      * - setting\n        - default\n        - meaning\n"
        for setting, default, meaning in experiment.settings:
            shown = default if len(default) < 80 else default[:77] + "..."
            text += f"      * - ``--{setting.replace('_', '-')}``\n        - ``{shown}``\n        - {escape(meaning)}\n"
    text += f"\n.. dropdown:: experiments/{name}.py\n\n"
    return text + f"   .. literalinclude:: /../experiments/{name}.py\n      :language: python\n"


def thumbnail(figure: Path, path: Path) -> None:
    """A small copy for the overview, made anew when the figure is newer."""
    if not path.exists() or path.stat().st_mtime < figure.stat().st_mtime:
        with Image.open(figure) as image:
            small = image.convert("RGB")
            small.thumbnail((560, 560))
            small.save(path, optimize=True)


def write_pages(app: Sphinx) -> None:
    """``builder-inited``: ``gallery/`` anew, after checking that the tables, the figures and the files agree."""
    docs, root = Path(app.srcdir), Path(app.srcdir).parent
    files = sorted(path for path in (root / "experiments").glob("*.py") if not path.stem.startswith("_"))
    shown = claims((docs / "gallery.md").read_text(encoding="utf-8"))
    names, figures = {path.stem for path in files}, {path.stem for path in (docs / "figures").glob("*.png")}
    problems = [
        f"docs/figures/{name}.png is missing" for name in sorted(names - figures - set(WITHOUT_FIGURE))
    ]
    problems += [
        f"docs/gallery.md has no row for {name}" for name in sorted(names - set(shown) - set(WITHOUT_FIGURE))
    ]
    problems += [
        f"docs/gallery.md has a row for {name}, no experiment" for name in sorted(set(shown) - names)
    ]
    problems += [
        f"docs/figures/{name}.png is no experiment's" for name in sorted(figures - names - set(OTHER_FIGURES))
    ]
    if problems:
        raise ExtensionError("\n".join(problems))
    folder = docs / "gallery"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.stem not in names:
            path.unlink()
    for path in files:
        name = path.stem
        write_if_changed(
            folder / f"{name}.rst", page(read_experiment(path), plain(shown.get(name, "")), name in figures)
        )
        if name in figures:
            thumbnail(docs / "figures" / f"{name}.png", folder / f"{name}.png")


def plain(text: str) -> str:
    """Markdown of a table's cell as the text of an image."""
    return text.replace("\\|", "|").replace("`", "")


def grid(entries: list[dict[str, str]]) -> str:
    """Cards in up to three columns: title, link, text, image (may be empty)."""
    text = "::::{grid} 1 2 2 3\n:gutter: 3\n\n"
    for entry in entries:
        text += f":::{{grid-item-card}} {entry['title']}\n:link: {entry['link']}\n:link-type: doc\n"
        if entry["image"]:
            text += f":img-top: {entry['image']}\n:img-alt: {entry['title']}\n"
        text += f"\n{entry['text']}\n:::\n"
    return text + "::::\n"


def gallery_cards(table: re.Match[str]) -> str:
    """A table of the gallery as cards with thumbnails."""
    entries = []
    for row in table.group(1).splitlines():
        found = ROW.match(row)
        if not found:
            msg = f"docs/gallery.md: expected | [name](figures/name.png) | `command` | what it shows |, got {row}"
            raise ExtensionError(msg)
        name, claim = found[1], found[2].replace("\\|", "|")
        entries.append(
            {"title": name, "link": f"gallery/{name}", "image": f"gallery/{name}.png", "text": claim}
        )
    return grid(entries)


def front_cards(items: re.Match[str]) -> str:
    """The list of the front page as cards."""
    keys = ("title", "link", "text")
    return grid([dict(zip(keys, item, strict=True), image="") for item in ITEM.findall(items.group())])


def cards(app: Sphinx, docname: str, source: list[str]) -> None:
    """``source-read``: what is a list or a table in the repository is cards on the site."""
    if docname == "index":
        source[0] = re.sub(rf"(?:{ITEM.pattern}\n)+", front_cards, source[0], flags=re.MULTILINE)
    if docname == "gallery":
        names = sorted(path.stem for path in Path(app.srcdir, "gallery").glob("*.rst"))
        entries = "".join(f"{name} <gallery/{name}>\n" for name in names)
        source[0] = TABLE.sub(gallery_cards, source[0]) + f"\n```{{toctree}}\n:hidden:\n\n{entries}```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", cards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
