"""Session-wide settings: strict ranks, eight CPU devices so that meshes can be tested anywhere, a compilation cache."""

import atexit
import os
import shutil
import tempfile

import hypothesis
import jax
import jaxlib.version
import pytest

# Compiling takes what it takes, and a failure must come back on the next run.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is most of the suite's time, and many tests build the same program from new functions. The cache is this
# process's own and dies with it: nothing stale, nothing half written by another worker.
_cache = tempfile.mkdtemp(prefix="jaxopt_pde-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    """Plain pytest asks XLA for quick compilation of slower code; ``--run-slow`` compiles as a user does.

    Nearly all programs here are tiny, so LLVM's optimisations and the MLIR route of fusions cost more than they earn:
    together two thirds of the time of a compilation. XLA reads the variable once, when the first backend starts, and
    stops at a flag it does not know, hence the versions; the last of two equal flags wins, so the caller's own hold.
    """
    if not config.getoption("--run-slow"):
        flags = ["--xla_backend_optimization_level=0"]
        if (0, 7) <= jaxlib.version.__version_info__ < (0, 11):
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run by `make test-all`"))


@pytest.fixture(autouse=True, scope="module")
def drop_programs():
    """Every compiled program keeps memory maps, of which Linux allows a process 65,530; beyond that XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
