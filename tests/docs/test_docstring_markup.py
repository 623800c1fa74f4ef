"""The docstrings' mathematics survives reStructuredText: nothing in it is markup by accident."""

import inspect
import sys
from pathlib import Path

import pytest

import jaxopt_pde
from jaxopt_pde import landscape, pde, robustness, smoothing

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "_extensions"))
import docstring_markup


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("the bound |∇f|² ≤ 2LF", r"the bound \|∇f\|² ≤ 2LF"),
        ("from x* to y* in a step", r"from x\* to y\* in a step"),
        ("the *local entropy* of x*", r"the *local entropy* of x\*"),
        ("**always** and ``a*b|c``", "**always** and ``a*b|c``"),
        ("(2 ``noise_length``²)", r"(2 ``noise_length``\ ²)"),
        ("x_ and a_b", r"x\_ and a_b"),
        ("see :func:`~jaxopt_pde.pde.pad`, [n, *shape]", r"see :func:`~jaxopt_pde.pde.pad`, [n, \*shape]"),
        ("* a bullet of |x|", r"* a bullet of \|x\|"),
        ("code as `x*y` in Markdown", "code as ``x*y`` in Markdown"),
    ],
)
def test_marks_of_formulas_are_escaped_and_markup_is_kept(written, read):
    assert docstring_markup.escape(written) == read


def test_indented_lines_after_a_blank_one_are_a_formula():
    lines = [
        "It solves",
        "",
        "    u_t = |p|²",
        "",
        "on x*.",
        "",
        "Args:",
        "    x: where, |x| < 1,",
        "        or not.",
    ]
    out = docstring_markup.convert(lines)
    assert out[out.index("    u_t = |p|²") - 2] == "::"
    assert r"on x\*." in out
    assert out[-2:] == [r"    x: where, \|x\| < 1,", "        or not."]


def test_markup_over_the_end_of_a_line_ends_there():
    out = docstring_markup.convert(["A *gradient", "step* of x* to y*, and ``f(x,", "y)`` for all."])
    assert out == ["A *gradient*", r"*step* of x\* to y\*, and ``f(x,``", "``y)`` for all."]


def test_a_list_below_an_argument_is_no_formula():
    lines = [
        "Args:",
        "    rule: which:",
        "",
        "        * ``a``: the",
        "          first.",
        "        * ``b``: |x|.",
    ]
    assert "::" not in docstring_markup.convert(lines)
    assert r"        * ``b``: \|x\|." in docstring_markup.convert(lines)


def test_a_formula_within_a_bullet_ends_where_its_text_goes_on():
    lines = ["* ``a``: it is", "", "      |x| + ``y``", "", "  and |y| later."]
    out = docstring_markup.convert(lines)
    assert out == ["* ``a``: it is", "", "  ::", "", "      |x| + y", "", r"  and \|y\| later."]


def test_the_first_word_of_what_is_returned_is_no_type():
    """Napoleon would read "A state: three scalars" as a value of the type "A state"."""
    out = docstring_markup.convert(["It.", "", "Returns:", "    A state: three scalars."])
    assert out[-2:] == ["    A", "    state: three scalars."]


@pytest.mark.parametrize(
    "value", [jaxopt_pde.entropy_sgd, landscape.slice, pde.pad, robustness.pgd, smoothing.langevin]
)
def test_examples_pass_unchanged(value):
    lines = (inspect.getdoc(value) or "").splitlines()
    examples = [line for line in lines if line.strip().startswith((">>>", "..."))]
    assert examples
    assert [line for line in docstring_markup.convert(lines) if line in examples] == examples
