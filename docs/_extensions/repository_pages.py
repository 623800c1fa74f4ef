"""What the repository says elsewhere, as pages: results from the README, the changelog, links to files."""

import posixpath
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

RESULTS = ("Quickstart: what came out", "The bake-off", "What it costs")
"""Sections of the README that are the page of results."""

PAGES = {"README.md": "results", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "guides/adding_an_optimiser"}
"""Files outside of ``docs/`` that have a page on the site."""


def sections(text: str) -> dict[str, str]:
    """A Markdown text by its second-level headings."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def from_root(text: str) -> str:
    """Links of a file in the root of the repository, as seen from ``docs/``."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((benchmarks|experiments|jaxopt_pde|tests)/", r"](../\1/", text)


def write_if_changed(path: Path, text: str) -> None:
    """Leaves alone a file that has this text, so that Sphinx does not read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(app: Sphinx) -> None:
    """``builder-inited``: the generated pages, which git ignores."""
    docs, root = Path(app.srcdir), Path(app.srcdir).parent
    readme = sections((root / "README.md").read_text(encoding="utf-8"))
    if missing := [title for title in RESULTS if title not in readme]:
        msg = (
            f"README.md has no section {missing}, which docs/_extensions/repository_pages.py makes a page of"
        )
        raise ExtensionError(msg)
    introduction = (
        "# Results and costs\n\nAs in the README; every number comes from the command above its table.\n\n"
    )
    body = "".join(f"## {title}{readme[title]}" for title in RESULTS)
    write_if_changed(docs / "results.md", introduction + from_root(body))
    write_if_changed(docs / "changelog.md", from_root((root / "CHANGELOG.md").read_text(encoding="utf-8")))


def to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """``source-read``: links to files that have a page lead there, so that they work here and in the repository."""
    here = posixpath.dirname(docname)
    for file, page in PAGES.items():
        target = posixpath.relpath(page, here or ".") + ".md"
        source[0] = re.sub(rf"\]\((?:\.\./)+{re.escape(file)}(#[\w-]+)?\)", rf"]({target}\1)", source[0])


def to_interactive(app: Sphinx, doctree: nodes.document) -> None:
    """``doctree-read``: the interactive page is a link, and no file to download."""
    here = posixpath.dirname(app.env.current_document.docname) or "."
    for node in list(doctree.findall(addnodes.download_reference)):
        found = re.search(r"interactive/[\w.-]+\.html$", node["reftarget"])
        if found:
            link = nodes.reference("", "", *node.children, internal=True)
            link["refuri"] = posixpath.relpath(found.group(), here)
            node.replace_self(link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", to_pages)
    app.connect("doctree-read", to_interactive, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
