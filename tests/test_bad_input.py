"""Bad input through the commands themselves: one line that says what to do, exit status 2, every file as it was."""

import functools
import json
from pathlib import Path

import pytest
from flax import nnx
from tiny_recipe import tiny_recipe

from dimba_jax import checkpoint, commandline, evaluate, sample, strip, train
from dimba_jax.checkpoint import FORMAT, Checkpoints
from dimba_jax.config import from_config_dict, to_dict
from dimba_jax.data.examples import DataError
from dimba_jax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, check_kept, train_sentencepiece
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import make_denoiser

COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate, "strip": strip}
GOOD = '{"src": "q", "trg": "a"}\n'
FILES = {
    "empty": b"",
    "latin": GOOD.encode() + b'{"src": "caf\xe9", "trg": "a"}\n',
    "raw": b"\xff\xfe{\n",
    "broken": (GOOD * 2 + '{"src": "q", "trg": \n' + GOOD).encode(),
    "keys": (GOOD + '{"question": "q", "trg": "a"}\n').encode(),
    "types": (GOOD + '{"src": 3, "trg": "a"}\n').encode(),
    "deep": (GOOD + "[" * 100_000 + "\n").encode(),
    "digits": (GOOD + '{"src": ' + "9" * 5000 + "}\n").encode(),
    "half": (GOOD + '{"src": "\\ud800", "trg": "a"}\n').encode(),
    "long": (GOOD.replace("q", "q" * 50) * 9).encode(),
}


def run(command: str, arguments: list[str]) -> int:
    return COMMANDS[command].main([command, *arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with data, a recipe and a run of one step, and beside them all that is wrong."""
    place = tmp_path_factory.mktemp("bad")
    lines = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) + "\n" for i in range(8)]
    for folder in ("data", *FILES):
        (place / folder).mkdir()
        for split in ("train", "valid", "test"):
            content = FILES.get(folder, "".join(lines).encode())
            (place / folder / f"{split}.jsonl").write_bytes(content)
    (place / "recipe.py").write_text(
        tiny_recipe(
            place / "data",
            process={"timesteps": 10},
            training={"steps": 1, "batch_size": 8},
            sampling={"batch_size": 2},
        )
    )
    (place / "nothing.py").write_text("")
    (place / "syntax.py").write_text("def get_config(:\n")
    (place / "imports.py").write_text("import no_such_package\n")
    (place / "names.py").write_text("a, b\n")
    (place / "latin.py").write_bytes(b"name = '\xe9'\n")
    (place / "rubbish.model").write_bytes(b"rubbish")
    (place / "file").write_text("a file")
    texts = [f"what is number {i}?" for i in range(99)]
    (place / "pieces.model").write_bytes(train_sentencepiece(texts, 40))
    pieces = SentencePieceTokenizer((place / "pieces.model").read_bytes())
    save_untrained(place / "run")
    save_untrained(place / "again")
    save_untrained(place / "later", model={"novelty": 1})
    save_untrained(place / "other", model={"d_model": 16})
    save_untrained(place / "odd", model={"head_dim": 3})
    save_untrained(place / "pieces", tokenizer=pieces.to_dict())
    save_untrained(place / "nokind", tokenizer={"kind": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", FORMAT + 1)
        save_untrained(place / "newer")
    (place / "samples.examples.jsonl").write_text(
        '{"row": 0, "source": "a", "references": ["b"], "samples": ["c", "d"]}\n'
    )
    (place / "in.jsonl").write_text(GOOD)
    (place / "out.run.json").write_text(GOOD)
    (place / "out.jsonl").write_text("kept\n")
    return place


@functools.cache
def untrained(recipe: str):
    """The recipe's config, as it stands in a checkpoint, and the parts of a state."""
    command = ["", f"--config={recipe}"]
    parser = commandline.Flags()
    parser.config("recipe", command)
    config = from_config_dict(parser.parse(command).config)
    params = nnx.to_pure_dict(nnx.state(make_denoiser(config, ByteTokenizer.vocab_size, nnx.Rngs(0)), nnx.Param))
    process = make_process(config.process, ByteTokenizer.vocab_size)
    return to_dict(config), {"params": params, "ema": params, "process": process}


def save_untrained(workdir: Path, model: dict | None = None, tokenizer: dict | None = None) -> None:
    """A checkpoint as a run of the recipe writes it, as far as refusals read it; with settings that are not its own."""
    config, state = untrained(str(workdir.parent / "recipe.py"))
    config = config | {"model": config["model"] | (model or {})}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, state, data_state=None, config=config, tokenizer=tokenizer or {"kind": "bytes"})


TRAIN = ["--config=recipe.py", "--workdir=new"]
SAMPLE = ["--checkpoint=run", "--prompt=q"]
FROM_FILE = ["--checkpoint=run", "--output=out.jsonl"]
EVALUATE = ["--checkpoint=run", "--output=out.jsonl"]
CASES = [
    # recipes and settings
    ("train", ["--config=none.py", "--workdir=new"], "--config=none.py: no such file"),
    ("train", ["--config=nothing.py", "--workdir=new"], "--config=nothing.py has no function get_config: give a"),
    ("train", ["--config=syntax.py", "--workdir=new"], "--config=syntax.py, line 1: SyntaxError: "),
    ("train", ["--config=latin.py", "--workdir=new"], "--config=latin.py, line 1: SyntaxError: "),
    ("train", ["--config=imports.py", "--workdir=new"], "line 1: ModuleNotFoundError: No module named"),
    ("train", ["--config=names.py", "--workdir=new"], "names.py, line 1: NameError: name 'a' is not defined"),
    ("train", ["--config=data", "--workdir=new"], "s a directory"),
    ("train", [*TRAIN, "--config.training.stepz=3"], 'Did you mean "steps"'),
    ("train", [*TRAIN, "--config.training.steps=many"], "config.training.steps"),
    ("train", [*TRAIN, "--config.optimizer.learning_rate=nan"], "learning_rate=nan: expected a finite number"),
    ("train", [*TRAIN, "--config.sampling.steps=11"], "sampling.steps=11 exceeds process.timesteps=10: take at most"),
    ("train", [*TRAIN, "--config.training.batch_size=12"], "batch_size=12 is not divisible by the 8 devices"),
    ("train", [*TRAIN, "--config.seed=-1"], "config.seed=-1: must lie between 0 and 4294967295"),
    ("train", [*TRAIN, "--seed=4294967296"], "4294967295"),
    ("train", ["--config=recipe.py", "--workdir=file"], "file is a file: name a folder"),
    ("train", ["--config=recipe.py", "--workdir=file/new"], "file is a file: name a folder"),
    # data
    ("train", [*TRAIN, "--config.data.path=none"], "none: no such folder (config.data.path must hold"),
    ("train", [*TRAIN, "--config.data.path=empty"], "valid.jsonl is empty"),
    ("train", [*TRAIN, "--config.data.path=latin"], "latin/valid.jsonl, line 2: not UTF-8"),
    ("train", [*TRAIN, "--config.data.path=broken"], "broken/valid.jsonl, line 3: not JSON"),
    ("train", [*TRAIN, "--config.data.path=keys"], "line 2: no key 'src' among ['question', 'trg']; config.data"),
    ("train", [*TRAIN, "--config.data.path=types"], "line 2: 'src' must be a text, got 3"),
    ("train", [*TRAIN, "--config.data.path=deep"], "deep/valid.jsonl, line 2: not JSON"),
    ("train", [*TRAIN, "--config.data.path=digits"], "digits/valid.jsonl, line 2: not JSON"),
    ("train", [*TRAIN, "--config.data.path=half"], "line 2: U+D800 (character"),
    ("train", [*TRAIN, "--config.data.path=long"], "none of the 9 rows of 'train' fits: raise config.data"),
    ("train", [*TRAIN, "--config.data.valid_file=../data/valid.jsonl"], "without '..'"),
    # tokenizers
    ("train", [*TRAIN, "--config.tokenizer.kind=sentencepiece", "--config.tokenizer.model=none.model"],
     "config.tokenizer.model=none.model: no such file; leave it empty"),
    ("train", [*TRAIN, "--config.tokenizer.kind=sentencepiece", "--config.tokenizer.model=rubbish.model"],
     "rubbish.model is no sentencepiece model"),
    ("train", ["--config=recipe.py", "--workdir=run", "--config.tokenizer.kind=sentencepiece"],
     "run holds a run with other settings; put these back, or choose a new workdir:"),
    # checkpoints
    ("train", ["--config=recipe.py", "--workdir=run", "--config.model.d_model=16"], "choose a new workdir:"),
    ("train", ["--config=recipe.py", "--workdir=run", "--seed=5"], "choose a new workdir:"),
    ("train", ["--config=recipe.py", "--workdir=newer"], f"has the format {FORMAT + 1}, and this version of dimba_jax"),
    ("sample", ["--checkpoint=none", "--prompt=q"], "none holds no checkpoint: train one with"),
    ("sample", ["--checkpoint=file", "--prompt=q"], "file holds no checkpoint: train one with"),
    ("sample", ["--checkpoint=run", "--checkpoint_step=7", "--prompt=q"], "has no step 7; it has 1"),
    ("sample", ["--checkpoint=newer", "--prompt=q"], "install the version that wrote it"),
    ("sample", ["--checkpoint=later", "--prompt=q"], "later holds a checkpoint that this version of dimba_jax cannot"),
    ("sample", ["--checkpoint=other", "--prompt=q"], "is of another model ("),
    ("sample", ["--checkpoint=odd", "--prompt=q"], "config.model.head_dim=3: attention needs an even divisor"),
    ("sample", ["--checkpoint=pieces", "--prompt=q"], "is of another model ("),
    ("sample", ["--checkpoint=nokind", "--prompt=q"], "tokenizer is of kind None: expected 'sentencepiece' or 'bytes'"),
    ("evaluate", ["--checkpoint=newer", "--output=out.jsonl"], "install the version that wrote it"),
    ("strip", ["--checkpoint=newer", "--output=out.png"], "install the version that wrote it"),
    # several models
    ("train", [*TRAIN, "--config.training.teachers=run"], "config.training.teachers='run' go together: a share above"),
    ("train", [*TRAIN, "--config.process.distillation=0.5", "--config.training.teachers=run"],
     "process.kind='gaussian' does not read it"),
    ("sample", [*SAMPLE, "--ensemble=run"], "run is named twice: an ensemble is of different models"),
    ("sample", [*SAMPLE, "--ensemble=none"], "none holds no checkpoint: train one with"),
    ("sample", [*SAMPLE, "--ensemble=newer"], "install the version that wrote it"),
    ("sample", [*SAMPLE, "--ensemble="], "an ensemble needs further models: name their workdirs"),
    ("sample", [*SAMPLE, "--ensemble=again"], "run (gaussian): distributions are averaged and learned from over whole"),
    ("evaluate", [*EVALUATE, "--ensemble=again"], "run (gaussian): distributions are averaged and learned from over"),
    ("evaluate", [*EVALUATE, "--ensemble=none"], "none holds no checkpoint: train one with"),
    # prompts
    ("sample", ["--checkpoint=run", "--prompt="], "--prompt is empty: give it some text"),
    ("sample", ["--checkpoint=run", "--prompt= \t"], "--prompt is empty: give it some text"),
    ("sample", ["--checkpoint=run", "--prompt=caf\udce9"], "--prompt: U+DCE9 (character 4) is half of a surrogate"),
    ("sample", [*SAMPLE, "--steps=11"], "sampling.steps=11 exceeds process.timesteps=10: take at most as many"),
    ("sample", [*SAMPLE, "--seed=-1"], "-1"),
    ("strip", ["--checkpoint=run", "--output=out.png", "--prompt="], "--prompt is empty: give it some text"),
    ("strip", ["--checkpoint=run", "--output=out.png", "--prompt=\udce9"], "U+DCE9"),
    ("strip", ["--checkpoint=run", "--output=out.png", "--prompt=q", "--stages=4"], "take from 2 to 3"),
    *(
        ("sample", [*FROM_FILE, f"--input={name}/test.jsonl"], message)
        for name, message in {
            "none": "there is no such file", "empty": "empty/test.jsonl is empty", "latin": "line 2: not UTF-8",
            "broken": "broken/test.jsonl:3: not JSON", "keys": 'keys/test.jsonl:2: expected an object with a text',
            "types": "types/test.jsonl:2: expected", "deep": "deep/test.jsonl:2: not JSON",
            "digits": "digits/test.jsonl:2: not JSON", "half": "half/test.jsonl:2: U+D800",
        }.items()
    ),
    ("sample", ["--checkpoint=run", "--input=in.jsonl", "--output=in.jsonl"], "would replace in.jsonl, which is read"),
    ("sample", ["--checkpoint=run", "--input=out.run.json", "--output=out.jsonl"], "would replace out.run.json"),
    # evaluation
    *(
        ("evaluate", [*EVALUATE, f"--data_path={name}"], message)
        for name, message in {
            "none": "none: no such folder", "empty": "empty/test.jsonl is empty", "latin": "line 2: not UTF-8",
            "broken": "broken/test.jsonl, line 3: not JSON", "keys": "line 2: no key 'src'",
        }.items()
    ),
    ("evaluate", [*EVALUATE, "--steps=11"], "sampling.steps=11 exceeds process.timesteps=10"),
    *(
        ("evaluate", [f"--samples={name}/test.jsonl", "--output=out.jsonl"], message)
        for name, message in {
            "none": "none/test.jsonl: no such file", "empty": "is empty", "raw": "line 1: not UTF-8",
            "keys": "test.jsonl:1: has no 'row'", "broken": "test.jsonl:1: has no 'row'",
        }.items()
    ),
    ("evaluate", ["--samples=samples.examples.jsonl", "--output=samples.json"], "would replace samples.examples.jsonl"),
    ("evaluate", ["--samples=in.jsonl", "--output=in.jsonl"], "would replace in.jsonl"),
    ("evaluate", ["--task=likelihood", "--checkpoint=run", "--input=in.jsonl", "--output=in.jsonl"], "would replace"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "arguments", "message"), CASES, ids=[f"{c}-{i}-{m[:24]}" for i, (c, _, m) in enumerate(CASES)]
)
def test_one_line_says_what_to_do(place, monkeypatch, capsys, command, arguments, message):
    monkeypatch.chdir(place)
    before = contents(place)
    assert run(command, arguments) == 2
    error = capsys.readouterr().err
    said = error[error.index(f"{command}: ") :].removesuffix("\n")
    assert message in said.splitlines()[0] and "Traceback" not in error
    # what differs between two models or runs is listed below the line
    assert "\n" not in said or "another model" in said or "other settings" in said
    assert contents(place) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_a_prompt_of_100_000_characters_is_cut_and_told(place, caplog, capsys):
    assert run("sample", [f"--checkpoint={place}/run", f"--prompt={'long ' * 20_000}"]) == 0
    assert "cut to the 3 tokens that fit the source; the longest has 99999" in caplog.text
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_keeps_its_tokenizer(place):
    def config(name):
        return from_config_dict({"tokenizer": {"model": str(place / name)}})

    own = SentencePieceTokenizer((place / "pieces.model").read_bytes())
    check_kept(config("pieces.model"), own)
    check_kept(config("moved.model"), own)  # a workdir may move machines
    check_kept(from_config_dict({}), own)
    with pytest.raises(DataError, match="not the tokenizer that this run began with"):
        check_kept(config("rubbish.model"), own)
