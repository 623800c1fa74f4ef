"""The package's docstrings as reStructuredText: bars are norms, stars are minimisers, indented lines are formulas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTIONS = ("Good values", "Extra args of update", "Warns", "Differentiation", "Methods")
_HEADERS = {*SECTIONS, "Args", "Attributes", "Example", "Raises", "References", "Returns"}
_OPAQUE = re.compile(
    r":[\w.]+:`[^`]+`"  # roles
    r"|``.+?``"
    r"|`[^`]+`"
    r"|\*\*[^*\s][^*]*\*\*"
    r"|(?<![\w*])\*[A-Za-z][^*|]*[A-Za-z.]\*(?![\w*])"  # *emphasis*, and not x* of two formulas
)

_AFTER = " '\")]}>-/:.,;!?"  # what may follow markup; the empty string, the end of the line, is in it


def escape(line: str) -> str:
    """Takes their meaning in reStructuredText from bars, stars and underscores that are mathematics."""
    pieces, end = [], 0
    for found in _OPAQUE.finditer(line):
        markup = found.group()
        if re.fullmatch(r"`[^`]+`", markup):  # code, as in Markdown
            markup = f"`{markup}`"
        pieces += [_escape_plain(line[end : found.start()]), markup]
        end = found.end()
        if line[end : end + 1] not in _AFTER:
            pieces.append("\\ ")
    return "".join([*pieces, _escape_plain(line[end:])])


def _escape_plain(text: str) -> str:
    bullet = re.match(r"\s*[*-] ", text)
    start = bullet.end() if bullet else 0
    return text[:start] + re.sub(r"([\\|*`])|(_)(?!\w)", lambda found: "\\" + found.group(), text[start:])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _text_indent(line: str) -> int:
    """Where the text of a line starts, behind its bullet if it has one."""
    return _indent(line) + 2 * line.lstrip().startswith("* ")


def _close_lines(lines: list[str]) -> list[str]:
    """Ends emphasis and code that go over a line's end there, and begins them again on the next."""
    text = "\n".join(lines)
    for mark, inside in (("``", r"[^`\n]"), ("*", r"[^*|\n]")):
        quoted = re.escape(mark)
        text = re.sub(
            rf"(?<![\w*`]){quoted}([A-Za-z(]{inside}*)\n( *)({inside}*[\w.)\]}}\"']){quoted}(?![\w*`])",
            rf"{mark}\1{mark}\n\2{mark}\3{mark}",
            text,
        )
    return text.split("\n")


def convert(lines: list[str]) -> list[str]:
    """One docstring, dedented, in the form that napoleon and docutils read as it was meant."""
    lines = _close_lines(lines)
    out: list[str] = []
    section, formula, previous = "", None, ""  # formula: the indentation of the block we are in
    in_doctest = False
    for number, line in enumerate(lines):
        text = line.strip()
        if not text:
            in_doctest = False
            out.append("")
            continue
        indent = _indent(line)
        header = text.replace("``", "")[:-1] if text.endswith(":") and indent == 0 else ""
        if header in _HEADERS:
            section, formula, previous = header, None, ""
            out.append(f"{header}:")
            continue
        if section and indent == 0:
            section = ""
        in_doctest = in_doctest or text.startswith(">>> ")
        if formula is not None and indent < formula:
            formula = None
        after_blank = number > 0 and not lines[number - 1].strip()
        deeper = after_blank and bool(previous) and indent > _text_indent(previous)
        if formula is None and deeper and not in_doctest and not text.startswith("* "):
            formula = indent
            out += [" " * _text_indent(previous) + "::", ""]
        if section == SECTIONS[1] and indent == 4 and not re.match(r"[\w, ]+: ", text):
            section, line = "", ""  # a remark after the fields, and no field
            out += ["", escape(text)]
        elif formula is not None:
            out.append(line.replace("``", ""))
        elif in_doctest:
            out.append(line)
        elif section == "Returns" and not previous and " " in text and not text.startswith((":", "``")):
            # napoleon takes what stands before a colon in the first line for a type: leave it one word.
            first, rest = escape(text).split(" ", 1)
            out += [" " * indent + first, " " * indent + rest]
        elif section == "Returns" and not previous:
            out += [" " * indent + "\\ ", " " * indent + escape(text)]
        else:
            out.append(escape(line))
        if formula is None:
            previous = line
    return out


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """``autodoc-process-docstring``, before napoleon's."""
    lines[:] = convert(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
