"""Smoke runs made once; the tiny experiment of ``walk.py``, on the path of ``experiments`` for the runner's tests."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import experiments
from experiments import _run, _unfinished
from experiments.__main__ import load

ROOT = Path(experiments.__file__).parents[1]
DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background hands on "ignored"
import experiments
experiments.__path__.append(sys.argv[1])
from experiments import _unfinished
if "--always" in sys.argv:
    sys.argv.remove("--always")
    _unfinished.SECONDS, _unfinished.COST = 0.0, float("inf")
from experiments.__main__ import main
status = main(sys.argv[2:])
"""


class Source(NamedTuple):
    """A folder of experiments outside the repository."""

    folder: Path
    walk: str

    def write(self, name, text):
        (self.folder / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    def command(self, *arguments, then=""):
        """``python -m experiments ARGUMENTS`` as a process that also finds the folder's experiments."""
        code = f"{DRIVER}{then}\nsys.exit(status)"
        process = [sys.executable, "-W", "error", "-c", code, self.folder, *arguments]
        return subprocess.Popen(
            [str(word) for word in process],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def always(monkeypatch):
    """A checkpoint after every iteration of a scan, however short; ``--always`` is that for the processes below."""
    monkeypatch.setattr(_unfinished, "SECONDS", 0.0)
    monkeypatch.setattr(_unfinished, "COST", float("inf"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The stored run of an experiment's SMOKE by its name: made once, by whichever worker asks for it first."""
    own = tmp_path_factory.mktemp("smoke", numbered=False)
    several = "PYTEST_XDIST_WORKER" in os.environ

    def execute(name):
        module = load(name)
        where = Path("smoke", name, _run.config_hash(name, module.SMOKE))
        for worker in own.parent.parent.iterdir() if several else [own.parent]:
            try:
                return _run.read_record(worker / where)
            except _run.StoreError:  # not there, or not finished: two workers may make the same at once
                continue
        return _run.execute(name, module, module.SMOKE, results_dir=own)

    return execute


@pytest.fixture(scope="session")
def new_source(tmp_path_factory):
    """Makes folders that hold ``walk.py``."""

    def make():
        walk = Path(__file__).with_name("walk.py").read_text(encoding="utf-8")
        source = Source(tmp_path_factory.mktemp("source"), walk)
        source.write("walk", walk)
        return source

    return make


@pytest.fixture
def source(new_source, monkeypatch):
    """Such a folder, on the path of the package for one test."""
    source = new_source()
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(source.folder)])
    yield source
    for path in source.folder.glob("*.py"):
        sys.modules.pop(f"experiments.{path.stem}", None)


@pytest.fixture
def walk(source):
    """The module of the experiment."""
    return load("walk")


@pytest.fixture(scope="session")
def stored_bytes():
    """What is stored of the only run of ``walk`` in a results directory."""

    def read(results):
        (path,) = Path(results, "walk").glob("*/results.npz")
        return path.read_bytes()

    return read
