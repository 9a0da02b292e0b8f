import importlib
import signal
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def study(monkeypatch):
    """The modules of a study's folder, by name; gone again after the test, since every study has its own."""

    def forget():
        for module in (
            "axes",
            "documents",
            "result_files",
            "front_page",
            "table",
            "search",
            "run",
            "mbr",
            "choices",
            "differences",
            "kept_samples",
            "report",
            "baselines",
            "seq2seq",
            "seq2seq_lines",
            "trainings",
            "seq2seq_tables",
            "sampling_settings",
        ):
            sys.modules.pop(module, None)

    def load(folder, name):
        for path in (EXPERIMENTS, EXPERIMENTS / folder):
            monkeypatch.syspath_prepend(str(path))
        forget()
        return importlib.import_module(name)

    handler = signal.getsignal(signal.SIGTERM)
    yield load
    forget()
    signal.signal(signal.SIGTERM, handler)
