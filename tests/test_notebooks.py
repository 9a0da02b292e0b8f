"""The notebooks: stored without outputs, and run from top to bottom on the CPU."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# what each shows: how many pictures, and what it prints among other things
SHOWN = {
    "dimba_quickstart": (2, ["(cpu)", "t = 1.00", "t = 0.00", "read back from"]),
    "masked_diffusion": (3, ["(cpu)", "t = 1.00", "t = 0.00", "filled in:", "remdm, 2 steps", "real text"]),
    "tpu_training": (
        1,
        [
            "8 x cpu (cpu)", "starting; ", "killed: status -9", "checkpoints: [15]", "going on from step 15; ",
            "computed twice: steps [16", "; their losses differ by 0 at most", "60/60 (100%)",
            "step 60, restored on the mesh {'data': 1, 'fsdp': 8, 'tensor': 1, 'sequence': 1}", "8 pieces of ",
            "step 61: loss ", "from step 60 of shakespeare_tiny:",
        ],
    ),
}  # fmt: skip
# the notebook of eight devices runs programs for a moment each, thrice: they are not worth optimising
MORE = {"tpu_training": {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"{path.name}: a cell holds outputs; clear them before committing: {cell.source!r}"
            assert cell.execution_count is None, f"{path.name}: a cell holds a run number: {cell.source!r}"


def test_runs_from_the_checkout(path, monkeypatch):
    """In smoke mode, as somebody runs it who opened it in its folder of an uninstalled checkout."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    environment = {
        "DIMBA_SMOKE": "1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    } | MORE.get(path.stem, {})
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' virtual devices
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()

    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in shown)
    expected, phrases = SHOWN[path.stem]
    assert len(pictures) == expected
    for phrase in phrases:
        assert phrase in text, f"{path.name} does not print {phrase!r}"
