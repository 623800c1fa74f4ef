"""The site as it was built: nothing is loaded from elsewhere, and links that lead out are well formed."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

RESOURCES = {
    "script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data",
}  # fmt: skip


class Links(HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.outward: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps the addresses of one element."""
        values = dict(attrs)
        address = values.get(RESOURCES.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address):
            self.loaded.append(address)
        if tag == "a" and ":" in (values.get("href") or "").partition("/")[0]:
            self.outward.append(values["href"] or "")


def check(app: Sphinx, exception: Exception | None) -> None:
    """``build-finished``: raises where a page would need the network, or links to no address."""
    if exception or app.builder.format != "html":
        return
    problems, outward = [], set()
    for path in Path(app.outdir).rglob("*.html"):
        links = Links()
        links.feed(path.read_text(encoding="utf-8"))
        problems += [f"{path.name} loads {address}" for address in links.loaded]
        outward |= {(path.name, address) for address in links.outward}
    for path in Path(app.outdir).rglob("*.css"):
        found = re.findall(
            r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8")
        )
        problems += [f"{path.name} loads {address}" for address in found]
    for page, address in outward:
        parts = urlsplit(address)
        if parts.scheme == "mailto":
            continue
        if parts.scheme != "https" or "." not in parts.netloc or re.search(r"[\s<>\"]", address):
            problems.append(f"{page} links to {address}, expected https://host.name/...")
    if problems:
        raise ExtensionError("\n".join(sorted(problems)))
    logging.getLogger(__name__).info(
        "%d addresses lead out (their form was checked), none is loaded", len({a for _, a in outward})
    )


def copy_interactive(app: Sphinx, exception: Exception | None) -> None:
    """``build-finished``: the page with sliders is static, and goes along as it is."""
    source = Path(app.srcdir, "interactive")
    if not exception and app.builder.format == "html" and source.is_dir():
        no_python = shutil.ignore_patterns("*.py", "__pycache__")
        shutil.copytree(source, Path(app.outdir, "interactive"), dirs_exist_ok=True, ignore=no_python)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("build-finished", copy_interactive, priority=400)
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
