"""The pages' code runs: every Python block of a page, in order, in one namespace, as a reader would paste it."""

import re
import warnings
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)

ELSEWHERE = {  # these need names that the reader brings, or run block by block: tests/test_house.py
    "README.md": "test_the_readmes_example_trains, test_the_readmes_grid_example_runs",
    "docs/guides/batch_norm.md": "test_the_batch_norm_guide_runs_in_both_forms",
    "docs/guides/landscapes.md": "test_the_landscape_guide_runs_as_printed",
    **{
        f"docs/theory/{path.name}": "test_the_theory_pages_examples_run"
        for path in sorted((ROOT / "docs" / "theory").glob("*.md"))
    },
}
GENERATED = {"docs/results.md", "docs/changelog.md"}
SLOW: dict[str, str] = {}


def python_blocks(path):
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def pages_with_code():
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        if python_blocks(path) and name not in ELSEWHERE and name not in GENERATED:
            yield pytest.param(path, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.fixture
def default_promotion():
    """Readers have JAX's defaults, not the strict ranks of this suite."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("path", list(pages_with_code()))
def test_the_blocks_of_a_page_run_in_order(path, default_promotion, tmp_path, monkeypatch, capsys):
    """Also what the page says is printed: its words, and accuracies within what their images can tell."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # other libraries' deprecations are not the reader's concern
        for number, block in enumerate(python_blocks(path), 1):
            code = compile(block, f"{path.name}, block {number}", "exec")
            exec(code, names)
    plt.close("all")
    printed = capsys.readouterr().out
    shown = re.findall(r"^```text\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    claimed, reached = (
        re.findall(r"test accuracy: ([\d.]+)% of (\d+)", text) for text in ("".join(shown), printed)
    )
    for (claim, size), (found, _) in zip(claimed, reached, strict=True):
        # Rounding moves the path of a training, by less than an accuracy is known from that many images.
        error = (float(claim) / 100 * (1 - float(claim) / 100) / int(size)) ** 0.5
        assert abs(float(found) - float(claim)) / 100 < 4 * error
    for line in "".join(shown).splitlines():
        words = re.sub(r"[\d.]+", "#", line)
        assert words in re.sub(r"[\d.]+", "#", printed), line


def test_the_pages_run_elsewhere_name_their_tests():
    """A page leaves the list above with its code, and a test that is gone is missed."""
    house = (ROOT / "tests" / "test_house.py").read_text(encoding="utf-8")
    for name, tests in ELSEWHERE.items():
        if python_blocks(ROOT / name):
            for test in tests.split(", "):
                assert f"def {test}(" in house, (name, test)


NUMBER = r"\d+\.\d+(?: ± \d+\.\d+)?"


def test_numbers_of_the_decision_table_are_the_bakeoffs():
    """Every mean and interval on the page of choices stands in the README, whose tables the experiments printed."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set(re.findall(NUMBER, readme))
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    prose = re.sub(r"`[^`]*`|\([^)\s]*\.(?:md|png)[^)]*\)", "", page)
    used = set(re.findall(NUMBER, prose))
    assert len(used) > 20
    assert used - known == set()
