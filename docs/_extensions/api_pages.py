"""A page for every public symbol, from its docstring; a public symbol without one stops the build."""

import ast
import importlib
import inspect
import itertools
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PACKAGE = "jaxopt_pde"
MODULES = ("", "smoothing", "pde", "control", "robustness", "landscape", "plotting", "problems", "models")
TITLES = {
    "": "Optimisers",
    "smoothing": "Estimators of the relaxed loss",
    "pde": "Solvers on grids",
    "control": "Optimal control",
    "robustness": "Robustness",
    "landscape": "Landscapes",
    "plotting": "Plotting",
    "problems": "Test problems and rates",
    "models": "Networks",
}
TYPES = ("Params", "ArrayTree", "ScalarOrSchedule", "ValueFn", "GradFn")


class Symbol(NamedTuple):
    """A public symbol under the one name that its page has.

    Attributes:
        name: ``jaxopt_pde.entropy_sgd``.
        module: ``""`` for the package itself, else the subpackage.
        value: the object.
    """

    name: str
    module: str
    value: Any


def public_symbols() -> dict[str, Symbol]:
    """Every name in an ``__all__`` of the package, aliases left out: the first module in ``MODULES`` names it."""
    symbols: dict[str, Symbol] = {}
    seen: set[int] = set()
    for module in MODULES:
        full = f"{PACKAGE}.{module}".rstrip(".")
        imported = importlib.import_module(full)
        for name in imported.__all__:
            value = getattr(imported, name)
            if inspect.ismodule(value) or id(value) in seen:
                continue
            seen.add(id(value))
            symbols[f"{full}.{name}"] = Symbol(f"{full}.{name}", module, value)
    functions_first = sorted(symbols.items(), key=lambda item: inspect.isclass(item[1].value))
    symbols = dict(functions_first)
    subpackages = {path.parent.name for path in Path(imported.__file__).parents[1].glob("*/__init__.py")}
    if missed := sorted(
        subpackages - {*MODULES, "optimizers"}
    ):  # the package itself has all of the optimizers
        msg = f"subpackages without a page in the API reference: {', '.join(missed)}"
        raise ExtensionError(msg)
    return symbols


def undocumented(symbols: dict[str, Symbol]) -> list[str]:
    """Names whose value, or whose public method, has no docstring of its own."""
    missing = []
    for name, symbol in symbols.items():
        if not callable(symbol.value):
            missing += [] if _comment_below(symbol) else [name]
            continue
        if not (symbol.value.__doc__ or "").strip() or symbol.value.__doc__.startswith(
            f"{symbol.value.__name__}("
        ):
            missing.append(name)
        missing += [
            f"{name}.{method}" for method in _methods(symbol.value) if not _own_doc(symbol.value, method)
        ]
    return missing


def _methods(value: Any) -> list[str]:
    """Public functions and properties written in the class itself, not in flax or in NamedTuple."""
    if not inspect.isclass(value):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    return [
        item.name
        for item in tree.body
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and hasattr(value, item.name)
    ]


def _own_doc(value: Any, method: str) -> str:
    return (getattr(inspect.getattr_static(value, method), "__doc__", None) or "").strip()


def _comment_below(symbol: Symbol) -> str:
    """The string under an assignment, which is how a constant is documented."""
    module = importlib.import_module(f"{PACKAGE}.{symbol.module}")
    name = symbol.name.rpartition(".")[2]
    for path in sorted(Path(module.__file__).parent.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for item, below in itertools.pairwise(body):
            targets = getattr(item, "targets", [getattr(item, "target", None)])
            if isinstance(item, ast.Assign | ast.AnnAssign) and any(
                getattr(t, "id", "") == name for t in targets
            ):
                return below.value.value if isinstance(below, ast.Expr) else ""
    return ""


def _heading(title: str) -> str:
    return f"{title}\n{'=' * (len(title) + 2)}\n\n"


def _summary(value: Any) -> str:
    from docstring_markup import escape

    return escape((inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " "))


def symbol_page(symbol: Symbol) -> str:
    """The reStructuredText of one symbol."""
    title = symbol.name.removeprefix(f"{PACKAGE}.")
    if not callable(symbol.value):
        doc = " ".join(_comment_below(symbol).split())
        return f"{_heading(title)}.. py:data:: {symbol.name}\n\n   {doc}\n"
    if inspect.isclass(symbol.value):
        methods = ", ".join(_methods(symbol.value))
        members = f"   :members: {methods}\n" if methods else ""
        return f"{_heading(title)}.. autoclass:: {symbol.name}\n{members}"
    return f"{_heading(title)}.. autofunction:: {symbol.name}\n"


def module_page(module: str, symbols: list[Symbol]) -> str:
    """The page of a subpackage: its docstring, a table of its symbols, their pages in the sidebar."""
    full = f"{PACKAGE}.{module}".rstrip(".")
    imported = importlib.import_module(full)
    page = _heading(TITLES[module]) + f".. module:: {full}\n\n"
    page += "" if module == "" else _summary(imported) + "\n\n"
    page += ".. list-table::\n   :widths: 34 66\n   :class: symbols\n\n"
    for symbol in symbols:
        short = symbol.name.removeprefix(f"{PACKAGE}.")
        summary = _summary(symbol.value) if callable(symbol.value) else _comment_below(symbol)
        page += f"   * - :doc:`{short} <{symbol.name}>`\n     - {summary}\n"
    entries = "".join(f"   {s.name.rpartition('.')[2]} <{s.name}>\n" for s in symbols)
    return page + f"\n.. toctree::\n   :hidden:\n\n{entries}"


def types_page() -> str:
    """The vocabulary of the signatures: the assignments of ``_typing.py`` with the strings under them."""
    source = Path(importlib.import_module(f"{PACKAGE}._typing").__file__).read_text(encoding="utf-8")
    body = ast.parse(source).body
    body += [statement for item in body if isinstance(item, ast.If) for statement in item.orelse]
    entries = {}
    for item, below in itertools.pairwise(body):
        if isinstance(item, ast.Assign) and isinstance(below, ast.Expr):
            text = " ".join(below.value.value.split())
            entries[ast.unparse(item.targets[0])] = (ast.unparse(item.value), text)
    if missing := [name for name in TYPES if name not in entries]:
        msg = f"jaxopt_pde/_typing.py documents no {', '.join(missing)}, which signatures name"
        raise ExtensionError(msg)
    return _heading("Types in the signatures") + "".join(
        f".. py:data:: {name}\n   :value: {entries[name][0]}\n\n   {entries[name][1]}\n\n" for name in TYPES
    )


def write_pages(app: Sphinx) -> None:
    """Writes ``api/`` anew, leaving alone what has not changed, so that a second build is quick."""
    symbols = public_symbols()
    if missing := undocumented(symbols):
        msg = f"public names without a docstring: {', '.join(missing)}"
        raise ExtensionError(msg)
    pages = {f"{name}.rst": symbol_page(symbol) for name, symbol in symbols.items()}
    toctree = ""
    for module in MODULES:
        title = module or "optimisers"
        pages[f"{title}.rst"] = module_page(module, [s for s in symbols.values() if s.module == module])
        toctree += f"   {title}\n"
    introduction = (
        "Every public name, from its docstring; the examples in them are run by the tests. Optimisers are "
        "``jaxopt_pde.NAME``, the rest ``jaxopt_pde.MODULE.NAME``. Symbols and units are those of "
        ":doc:`/notation`.\n\n"
    )
    introduction += f".. toctree::\n   :maxdepth: 1\n\n{toctree}   types\n"
    pages["index.rst"] = _heading("API reference") + introduction
    pages["types.rst"] = types_page()
    folder = Path(app.srcdir, "api")
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def check_pages(app: Sphinx, env: Any) -> None:
    """Every public symbol has ended up in the index of the built site."""
    objects = env.domains.python_domain.objects
    if missing := sorted(set(public_symbols()) - set(objects)):
        msg = f"public names that no page documents: {', '.join(missing)}"
        raise ExtensionError(msg)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("env-check-consistency", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
