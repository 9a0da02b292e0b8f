"""No source of this project can run what it reads."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "extractall", "unpack_archive", "unsafe_load", "full_load"}
# what a call must say beside its name, since its default once was or still is another
SAFELY = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
    (None, "from_pretrained"): ("trust_remote_code", False),
}


def dangers(source: str) -> list[str]:
    """Calls and imports by which data could become a program."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        found += [name for name in ("shell", "trust_remote_code", "allow_pickle") if said.get(name) is True]
        if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            found.append(node.func.id)
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, getattr(node.func.value, "id", None)
            must = SAFELY.get((owner, name)) or SAFELY.get((None, name))
            if must and said.get(must[0]) is not must[1]:
                found.append(f"{owner}.{name}")
            if name in METHODS or (owner, name) in (("yaml", "load"), ("pickle", "loads")):
                found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib.memory", "eval(text)", "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)",
        "AutoModel.from_pretrained(name)", "f(trust_remote_code=True)", "archive.extractall(place)", "os.system(text)",
        "subprocess.run(text, shell=True)", "__import__(name)",
    ],
)  # fmt: skip
def test_the_search_finds(source):
    assert dangers(source)


@pytest.mark.parametrize("folder", ["dimba_jax", "kernels", "configs", "experiments"])
def test_no_source_runs_what_it_reads(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    assert not [(str(path), danger) for path in paths for danger in dangers(path.read_text(encoding="utf-8"))]
