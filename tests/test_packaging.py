"""What a clone promises before anything of it runs: packaging, pins, licence, and the shape of the tree."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(python: str) -> dict[str, str]:
    """Package -> version for a Python; fails on a line that is no single pin."""
    found: dict[str, str] = {}
    for pin in constraints():
        if pin.marker is None or pin.marker.evaluate(default_environment() | {"python_version": python}):
            (specifier,) = pin.specifier
            assert specifier.operator == "==" and pin.url is None, f"constraints.txt: {pin} is no pin"
            assert canonicalize_name(pin.name) not in found, f"constraints.txt pins {pin.name} twice for {python}"
            found[canonicalize_name(pin.name)] = specifier.version
    return found


@pytest.mark.parametrize(("python", "jax"), [("3.11", "0.10.2"), ("3.12", "0.11.2"), ("3.13", "0.11.2")])
def test_pins_follow_the_python_version(python, jax):
    assert pins(python)["jax"] == pins(python)["jaxlib"] == jax


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_dependencies_admit_their_pins(python):
    found = pins(python)
    for text in [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["hub"], *EXTRAS["gpu"], *EXTRAS["tpu"]]:
        requirement = Requirement(text)
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"pyproject.toml asks for {requirement}, pinned is {version}"


@pytest.mark.skipif(not (Path(sys.prefix) / ".ready-dev").exists(), reason="not an environment that make has made")
def test_what_tests_are_skipped_without_is_installed():
    """Else kernels that were never compiled would look like those that a machine cannot compile."""
    for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text


def test_installed_jax_is_the_pinned_one():
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert importlib.metadata.version("jax") == pins(python)["jax"]


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run", ".pre-commit-config.yaml"]
)
def test_no_package_host_is_named(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|index.?url|find.?links|git\+", text, re.IGNORECASE)


def imports(*folders: str) -> Iterator[tuple[Path, str]]:
    """Every top-level package that a file in one of the folders imports, wherever in the file."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            yield from ((path.relative_to(ROOT), name.partition(".")[0]) for name in names)


def test_every_import_is_a_dependency():
    """`pip install -e .` alone must do for every command."""
    distribution = {"tensorboardX": "tensorboardx", "orbax": "orbax-checkpoint", "absl": "absl-py", "jaxlib": "jax"}
    optional = {
        "datasets",
        "huggingface_hub",
        "bert_score",
        "jax_triton",
        "triton",
        "lm_eval",
        "mauve",
        "torch",
        "transformers",
        "mamba_ssm",
        "causal_conv1d",
    }
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    for path, name in imports("dimba_jax", "kernels", "configs"):
        if name in sys.stdlib_module_names or name in {"dimba_jax", "dimba_kernels"} | optional:
            continue
        package = canonicalize_name(distribution.get(name, name))
        assert package in declared, f"{path} imports {name}, which pyproject.toml does not bring"


def test_kernels_need_jax_alone():
    """Triton only where a GPU kernel is asked for, and PyTorch only where a benchmark's peers run."""
    allowed = {"jax", "jaxlib", "jaxtyping", "numpy", "dimba_kernels", *sys.stdlib_module_names}
    triton = {"triton", "jax_triton"}
    peers = triton | {"torch", "mamba_ssm", "causal_conv1d"}
    for path, name in imports("kernels"):
        more = peers if path.name == "peers.py" else set()
        if path.name.startswith("gpu_") or path.name in ("triton_call.py", "exponentials.py"):
            more = triton
        assert name in allowed | more, f"{path} imports {name}"


def test_kernels_import_no_accelerator_package():
    """An installation for CPUs has neither Triton nor the kernels that import it."""
    code = "import sys, dimba_kernels; print({'triton', 'jax_triton', 'libtpu'} & {*sys.modules})"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "set()"


def test_source_roots_are_no_packages():
    """A package called `kernels` would shadow another project's, and so on."""
    for folder in ("kernels", "configs", "experiments", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
    build = PYPROJECT["tool"]["hatch"]["build"]
    for package in build["targets"]["wheel"]["packages"]:
        assert (ROOT / package).is_dir()
    assert build["dev-mode-dirs"] == [".", "kernels"]


def test_files_stay_readable():
    for path in [*(ROOT / "dimba_jax").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        assert not path.stem.startswith("utils"), f"{path.relative_to(ROOT)}: name it after what it does"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 320, f"{path.relative_to(ROOT)} has {lines} lines: split it"


def test_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_make_help_lists_every_target():
    """Also that the Makefile parses; nothing is built."""
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("quickstart", "test", "lint", "types", "clean"):
        assert f"make {target} " in out
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is not executable"


def test_changelog_has_this_version():
    assert f"[{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
