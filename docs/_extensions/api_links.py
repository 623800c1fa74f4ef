"""Signatures as the source writes them, and references to public names wherever they are defined."""

import ast
import inspect
import textwrap
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

PACKAGE = "jaxopt_pde"


def signature_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str | None] | None:
    """``autodoc-process-signature``: the source's annotations, which are shorter than what they evaluate to."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if isinstance(tree, ast.ClassDef):
        return f"({', '.join(_fields(tree))})", None
    if not isinstance(tree, ast.FunctionDef):
        return None
    arguments = tree.args
    if what == "method" and arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    return f"({ast.unparse(arguments)})", ast.unparse(tree.returns) if tree.returns else None


def _fields(tree: ast.ClassDef) -> list[str]:
    """The fields of a NamedTuple, a dataclass or a Flax module, as written."""
    fields = []
    for item in tree.body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            value = ast.unparse(item.value) if item.value else ""
            default = f" = {'...' if 'field(' in value else value}" if value else ""
            fields.append(f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}{default}")
    return fields


def resolve(
    app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """``missing-reference``: finds what a docstring calls by its short or by its defining module's name.

    Other people's types in a signature and private names have no page and stay plain text; every other role has to
    lead somewhere.
    """
    if node.get("refdomain") != "py":
        return None
    objects = env.domains.python_domain.objects
    target = node["reftarget"].removeprefix("~").removeprefix(".")
    short = target.removeprefix(f"{PACKAGE}.optimizers.").removeprefix(f"{PACKAGE}._typing.")
    names = [f"{node.get('py:module')}.{short}", short, f"{PACKAGE}.{short}"]
    found = next((name for name in names if name in objects), None)
    if found is None:
        matches = [name for name in objects if name.endswith(f".{short}")]
        found = matches[0] if len(matches) == 1 else None
    if found is None:
        private = any(part.startswith("_") for part in target.split("."))
        return None if "refwarn" in node and not private else contnode
    entry = objects[found]
    uri = app.builder.get_relative_uri(node.get("refdoc", env.current_document.docname), entry.docname)
    return nodes.reference("", "", contnode, internal=True, reftitle=found, refuri=f"{uri}#{entry.node_id}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
