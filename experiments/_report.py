"""What a reader is told about a run: where it was made, its figure and table, the page that holds them.

Pages are single files: styles and figures are inside, nothing is fetched, every text is escaped.
"""

import ast
import base64
import contextlib
import hashlib
import html
import importlib.metadata
import inspect
import json
import platform
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

LARGEST_SVG = 1_000_000  # bytes; beyond that (many thousands of points) the page embeds the PNG

STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2024; --soft: #5b6570; --page: #ffffff; --card: #f4f6f8; --line: #d8dde3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b1; --page: #14171a; --card: #1e2328; --line: #363d45 }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif;
       color: var(--ink); background: var(--page) }
h1, h2 { line-height: 1.2; text-wrap: balance }
section + section { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem }
a { color: inherit }
code, pre { font: 0.9em/1.5 ui-monospace, monospace }
pre { background: var(--card); padding: 0.8rem 1rem; border-radius: 6px; overflow-x: auto;
      white-space: pre-wrap }
.wide { overflow-x: auto; margin: 1.2rem 0 }
img { display: block; width: 100%; min-width: 38rem; background: #ffffff; border-radius: 6px; padding: 0.5rem;
      box-sizing: border-box }
nav li { margin: 0.3rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 }
td + td { white-space: nowrap }
details td { white-space: normal; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--soft); margin: 0.6rem 0 }
.soft { color: var(--soft) }
"""


def code_origin(module: ModuleType) -> dict[str, str]:
    """What decides the bits of a run besides its config: the experiment's code and the versions under it."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    drawing = ("figure", "table")  # may be edited while a run waits to be resumed
    body = [node for node in tree.body if getattr(node, "name", None) not in drawing]
    origin = {
        "source": hashlib.sha256(ast.dump(ast.Module(body, [])).encode()).hexdigest()[:12],
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("jaxopt_pde", "jax", "jaxlib", "optax", "flax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            origin[package] = importlib.metadata.version(package)
    return origin


def git_commit() -> str | None:
    """The commit of the checkout this file belongs to (``-dirty`` if edited since); None without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails for a copy installed inside another repository
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def devices() -> dict[str, Any]:
    """The devices of the run; none if it never imported JAX, which is then not started just to ask."""
    if "jax" not in sys.modules:
        return {"device_kind": "none (JAX was not used)", "device_count": 0}
    import jax

    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "device_kind": ", ".join(kinds),
        "device_count": jax.device_count(),
        "x64": bool(jax.config.jax_enable_x64),
    }


def command(name: str, config: Mapping[str, Any]) -> str:
    """The command that makes the run again: every field, so that later defaults do not matter."""

    def words(value: Any) -> Iterable[str]:
        if isinstance(value, list):
            return (word for item in value for word in words(item))
        return (str(value),)

    flags = []
    for field, value in config.items():
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *words(value)]
    return shlex.join(["python", "-m", "experiments", "run", name, *flags])


def paragraphs(docstring: str) -> str:
    """A docstring as HTML: paragraphs, indented blocks as they stand, ``code`` and roles as code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring)) if docstring.strip() else []
    rendered = []
    for block in blocks:
        text = html.escape(block)
        if all(line.startswith("    ") for line in text.splitlines()):
            rendered.append(f"<pre>{textwrap.dedent(text)}</pre>")
            continue
        text = re.sub(r"(?:::?[a-z:]+:)?``?~?([^`]+)``?", r"<code>\1</code>", text)
        rendered.append(f"<p>{text}</p>")
    return "\n".join(rendered)


def grid(headers: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """An HTML table; without headers, the first column names the rows."""

    def escape(cell: Any) -> str:
        return html.escape(str(cell))

    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = []
    for row in rows:
        first, *others = [escape(cell) for cell in row]
        first = f"<td>{first}</td>" if head else f'<th scope="row">{first}</th>'
        body.append(f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in others)}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'


def image(directory: Path, description: str) -> str:
    """The figure beside the results, inside the page: the SVG unless it is very large, nothing if undrawn."""
    path = directory / "figure.svg"
    if path.exists() and path.stat().st_size > LARGEST_SVG:
        path = directory / "figure.png"
    if not path.exists():
        return ""
    # As an image and not inline: the ids inside two inline SVGs of one page would collide.
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    alternative = html.escape(description)
    return f'<div class="wide"><img alt="{alternative}" src="data:image/{kind};base64,{data}"></div>'


def section(record: Any, docstring: str) -> str:
    """One run as HTML.

    Args:
        record: an ``experiments._run.Record`` whose directory holds the figure and ``table.json``.
        docstring: of the experiment; its first line is the title, the rest the introduction.
    """
    title, _, introduction = docstring.strip().partition("\n")
    stored = record.directory / "table.json"
    table = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None
    made = f"{record.environment.get('date', '')}, {record.environment.get('wall_seconds', '?')} s"
    commit = record.environment.get("git_commit")
    where = f" at commit <code>{html.escape(commit)}</code>" if commit else ""
    parts = [
        f"<h2>{html.escape(title or record.name)}</h2>",
        f'<p class="soft">{html.escape(record.name)} · {html.escape(made)}</p>',
        paragraphs(introduction),
        image(record.directory, title or record.name),
        grid(table["headers"], table["rows"]) if table else "",
        f"<p>To make it again{where}:</p>",
        f"<pre>{html.escape(command(record.name, record.config))}</pre>",
        "<details><summary>Configuration</summary>",
        grid((), ((field, json.dumps(value)) for field, value in record.config.items())),
        "</details><details><summary>Environment</summary>",
        grid((), record.environment.items()),
        "</details>",
    ]
    return f'<section id="{html.escape(record.name)}">\n' + "\n".join(filter(None, parts)) + "\n</section>"


def page(title: str, sections: Mapping[str, str]) -> str:
    """A whole self-contained page.

    Args:
        title: of the page.
        sections: rendered sections by experiment name; with several, the page begins with links to them.
    """
    links = ""
    for name, section in sections.items():
        heading = re.search(r"<h2>(.*?)</h2>", section, re.DOTALL)[1]  # escaped already
        links += f'<li><a href="#{html.escape(name)}">{heading}</a> <span class="soft">{html.escape(name)}</span></li>'
    contents = f"<nav><ul>{links}</ul></nav>" if len(sections) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{contents}
{chr(10).join(sections.values())}
</body>
</html>
"""
