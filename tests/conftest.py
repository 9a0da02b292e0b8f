"""Shared fixtures. JAX runs on eight virtual CPU devices, fixed before anything imports it."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {"--xla_force_host_platform_device_count": "8"}
if version("jax").startswith("0.10."):
    # tests compile more than they compute, which XLA's former emitters do in two thirds of the time; jax 0.11 has none
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
if "jax" in sys.modules:  # a plugin was earlier: the platform is read from the config by now, the flags are not
    sys.modules["jax"].config.update("jax_platforms", os.environ["JAX_PLATFORMS"])

REPOSITORY = Path(__file__).resolve().parents[1]


def _data_folder() -> Path | None:
    """DIMBA_DATA, or the folder shared/data beside the repository; None if there is none."""
    named = os.environ.get("DIMBA_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if named and not folder.is_dir():
        raise pytest.UsageError(f"DIMBA_DATA={named}: no such folder")
    return folder if folder.is_dir() else None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "realdata: reads real data; skipped where there is none (set DIMBA_DATA)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _data_folder() is None:
        skip = pytest.mark.skip(reason="no real data: set DIMBA_DATA to its folder, or keep it in ../shared/data")
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets (qqp, qg_squad, …)."""
    folder = _data_folder()
    if folder is None:
        pytest.skip("no real data: set DIMBA_DATA to its folder, or keep it in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled programs of a test run lie, for all of its processes."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest, compiled_programs: Path):
    """Programs that run for a millisecond are not worth optimising, and the same ones are compiled often.

    A module whose programs run for long says `OPTIMISED = True`.
    """
    import jax

    settings = {
        "jax_disable_most_optimizations": not getattr(request.module, "OPTIMISED", False),
        "jax_compilation_cache_dir": str(compiled_programs),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    # every program holds mappings of memory, of which a process may have 65,530: without this a worker ran out of
    # them after some thousand tests, and the compiler crashed
    jax.clear_caches()


@pytest.fixture
def write_pairs() -> Callable[[Path, int], None]:
    """Writes so many short pairs to train.jsonl and as many to valid.jsonl in a folder."""

    def write(folder: Path, count: int) -> None:
        lines = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) for i in range(count)]
        for split in ("train", "valid"):
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    return write
