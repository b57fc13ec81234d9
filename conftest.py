"""How the tests run: on four forced CPU devices, and with little time spent in the compiler.

The tests compile thousands of tiny programs, many of them more than once. Half of the suite's time would
go into that. So the compiler's backend is told to optimise little, and what it compiled is kept until
the end of the run. What the environment sets has precedence. All of this must be set before JAX starts.
"""

import gc
import importlib.metadata
import itertools
import os
import shutil
import tempfile


#: Flags of the compiler. It ends the process if it does not know one of them.
_FLAGS = {
    "xla_force_host_platform_device_count": 4,
    # With less, programs that are parted among devices differ in the last bit from those that are not.
    "xla_backend_optimization_level": 1,
}
#: Versions of jaxlib that compile loops and small operations in a third less time with this flag. Newer
#: ones have neither the flag nor what it turns off.
_WITH_EMITTERS = (0, 6), (0, 11)
_NO_EMITTERS = {"xla_cpu_use_fusion_emitters": "false"}

_OWN = "PSTATE_TESTS_COMPILED"


def _xla_flags() -> None:
    flags, wanted = os.environ.get("XLA_FLAGS", ""), dict(_FLAGS)
    first, end = _WITH_EMITTERS
    if first <= tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < end:
        wanted |= _NO_EMITTERS
    for name, value in wanted.items():
        if name not in flags:
            flags += f" --{name}={value}"
    os.environ["XLA_FLAGS"] = flags


def _compilation_cache() -> str | None:
    """A folder of this run, in which each worker has a part of its own: JAX locks nothing of it.

    The processes that a test starts share the part of their worker.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and _OWN in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ[_OWN], worker)
        return None
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = tempfile.mkdtemp(prefix="pstate-tests-")
    os.environ[_OWN] = os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return folder


_xla_flags()
_FOLDER = _compilation_cache()
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_sessionfinish() -> None:
    if _FOLDER is not None:
        shutil.rmtree(_FOLDER, ignore_errors=True)


#: Tests between two collections of everything.
_COLLECT_EVERY = 300
_count = itertools.count()


def pytest_runtest_setup() -> None:
    """Keep what earlier tests left out of the sight of the garbage collector.

    JAX's check for leaks collects garbage after each trace, and would look through all of it each time.
    """
    if next(_count) % _COLLECT_EVERY == 0:
        gc.unfreeze()
        gc.collect()
    else:
        gc.collect(1)
    gc.freeze()
