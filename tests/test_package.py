"""What a user of the released package gets: wheel and source archive, their metadata, types; all of it slow."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import jaxopt_pde

ROOT = Path(__file__).parent.parent
PROGRAM = """
import jax, jaxopt_pde
tx = jaxopt_pde.entropy_sgd(0.5, 1.0, 0.1)
x = jax.numpy.ones(3)
updates, _ = tx.update(x, tx.init(x), x, value_fn=lambda x: x @ x / 2)
assert (updates < 0).all()
jaxopt_pde.models.LeNet, jaxopt_pde.plotting.profile
print(jaxopt_pde.__file__)
"""

pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, and the wheel made from it and not from the checkout."""
    pytest.importorskip("build", reason='needs `pip install -e ".[dev]"`')
    folder = tmp_path_factory.mktemp("archives")
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def test_the_archives_hold_the_package_and_nothing_that_does_not_belong(archives):
    source, wheel = archives
    version = jaxopt_pde.__version__
    package = {
        f"jaxopt_pde/{path.relative_to(ROOT / 'jaxopt_pde')}" for path in (ROOT / "jaxopt_pde").rglob("*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {
        f"jaxopt_pde-{version}.dist-info/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
    }
    assert names == package | {"jaxopt_pde/py.typed"} | metadata
    with tarfile.open(source) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames()}
    assert tops == {
        "jaxopt_pde", "experiments", "benchmarks", "tests", "docs", "README.md", "CHANGELOG.md", "CITATION.cff",
        "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore",
    }  # fmt: skip
    assert source.stat().st_size < 12e6


@pytest.mark.parametrize("which", ["source", "wheel"])
def test_each_installs_into_an_empty_environment_and_trains(archives, which, tmp_path):
    archive = dict(zip(("source", "wheel"), archives, strict=True))[which]
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(archive))
    assert str(tmp_path) in run(python, "-c", PROGRAM, cwd=tmp_path)


def test_a_type_checker_knows_every_public_type(archives, tmp_path):
    """In an environment of its own, since editable installs are not looked at; it borrows this one's packages."""
    pytest.importorskip("basedpyright", reason='needs `pip install -e ".[dev]"`')
    venv.create(tmp_path / "env", with_pip=True)
    (packages,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    run(
        str(tmp_path / "env" / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        str(archives[1]),
    )
    (packages / "borrowed.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    path = f"{tmp_path / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    checker = str(Path(sys.executable).with_name("basedpyright"))
    report = run(
        checker, "--verifytypes", "jaxopt_pde", "--ignoreexternal",
        cwd=tmp_path, env={**os.environ, "PATH": path, "VIRTUAL_ENV": str(tmp_path / "env")},
    )  # fmt: skip
    assert "Type completeness score: 100%" in report


def test_the_citation_has_the_version():
    assert f"\nversion: {jaxopt_pde.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
