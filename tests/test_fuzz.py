"""Arbitrary and mutated configs, rows and tokenizers: what is wrong is refused by one of our errors, never a crash.

`-m slow` draws 10,000 cases in all; the fast tests a twentieth of them.
"""

import base64
import copy
import functools
import json
import random
import re
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dimba_jax.config import DataConfig, RunConfig, from_config_dict, to_dict
from dimba_jax.data.examples import DataError, Example
from dimba_jax.data.sources import load_split
from dimba_jax.data.tokenizers import ByteTokenizer, tokenizer_from_dict, train_sentencepiece
from dimba_jax.errors import ConfigError, UserError
from dimba_jax.evals.records import read_records

FEW, ALL = 20, 1  # the fast tests draw one case in FEW
EXTREMES = st.sampled_from([10**400, -(10**30), 2**63, 2**32, -1, 0, float("nan"), float("inf"), -0.0, 1e-320])
TEXTS = st.text(max_size=20) | st.text(st.characters(codec=None), max_size=20)  # half surrogate pairs too
SCALARS = st.none() | st.booleans() | st.integers() | EXTREMES | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=10
)
DEFAULTS = json.loads(json.dumps(to_dict(RunConfig())))


def draws(total: int, *drawn: st.SearchStrategy):
    """The same property with a part of its cases, and with all of them as a slow test."""

    def decorate(run):
        def test(self, part):
            checked = settings(
                max_examples=-(-total // part), deadline=None, database=None, derandomize=part == FEW,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            )(given(*drawn)(run))  # fmt: skip
            checked(self)

        functools.update_wrapper(test, run)
        del test.__wrapped__  # pytest would ask for the drawn arguments
        return pytest.mark.parametrize("part", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])(
            test
        )

    return decorate


def test_few_cases_and_all_in_one_process():
    drawn = []

    @draws(40, st.integers())
    def noted(self, value):
        drawn.append(value)

    noted(None, FEW)
    few = len(drawn)
    noted(None, ALL)
    assert few == 2 and len(drawn) == 42


@st.composite
def mutated_configs(draw) -> dict[str, Any]:
    """The default config with some settings replaced, dropped, renamed or added, at any depth."""
    values = copy.deepcopy(DEFAULTS)
    for _ in range(draw(st.integers(1, 2))):
        group = values
        while inner := [key for key, value in group.items() if isinstance(value, dict)]:
            if draw(st.booleans()) and group is not values:
                break
            group = group[draw(st.sampled_from(sorted(inner)))]
        if not group:
            continue
        key = draw(st.sampled_from(sorted(group)))
        match draw(st.integers(0, 9)):
            case 0:
                del group[key]
            case 1:
                group[key + draw(st.text(max_size=2))] = group.pop(key)
            case 2:
                group[draw(TEXTS)] = draw(VALUES)
            case 3:
                group[key] = draw(VALUES)
            case _:
                group[key] = near(draw, group[key])
    return values


def near(draw, value: Any) -> Any:
    """A value of the same type, so that what lies behind the check of types is reached."""
    match value:
        case bool():
            return not value
        case int():
            return draw(st.integers(-2, 2 * abs(value) + 2) | EXTREMES)
        case float():
            return draw(st.sampled_from([float("nan"), float("inf")]) | st.floats(-2, 2) | EXTREMES)
        case str():
            return draw(st.sampled_from([value, "masked", "gaussian", "text", "mamba2", "none", ""]) | TEXTS)
        case list():
            return draw(st.permutations(value)) + draw(st.lists(SCALARS, max_size=1))
    return draw(VALUES)


class TestConfigs:
    @draws(2000, VALUES | st.dictionaries(st.sampled_from(sorted(DEFAULTS)), VALUES, max_size=4))
    def test_any_json(self, values):
        self.check(values)

    @draws(3000, mutated_configs())
    def test_a_changed_config(self, values):
        self.check(values)

    def check(self, values):
        try:
            config = from_config_dict(values)
        except ConfigError as error:
            assert str(error).startswith("config") and "\n" not in str(error) and len(str(error)) < 700
        else:  # it is whole: a checkpoint would bring it back
            stored = json.dumps(to_dict(config), ensure_ascii=False, allow_nan=False).encode()
            assert from_config_dict(json.loads(stored)) == config
            assert not re.search(rb"\d{20}[^.e\d]", stored), "an integer of more than 64 bits"


ROW = st.fixed_dictionaries({"src": TEXTS}, optional={"trg": TEXTS | st.lists(TEXTS), "refs": VALUES})
LINES = st.lists(
    st.one_of(
        (VALUES | ROW).map(json.dumps), ROW.map(lambda row: json.dumps(row)[:-1]), st.text(max_size=20)
    ).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=20),
    max_size=4,
)  # fmt: skip
ANSWER = {"row": 0, "source": "a", "references": ["b"], "samples": ["c"], "unseen": None}


class TestRows:
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory):
        TestRows.path = tmp_path_factory.mktemp("rows") / "test.jsonl"

    @draws(1500, LINES)
    def test_pairs(self, lines):
        self.path.write_bytes(b"\n".join(lines))
        try:
            rows = load_split(DataConfig(path=str(self.path.parent)), "test")
        except DataError as error:
            assert str(self.path.parent) in str(error) and "\n" not in str(error)
        else:
            assert rows and all(isinstance(row, Example) and row.targets for row in rows)
            for row in rows:
                ByteTokenizer().encode_batch([row.source, *row.targets])

    @draws(500, st.dictionaries(st.sampled_from(sorted(ANSWER)), VALUES, max_size=2), LINES)
    def test_records(self, changes, lines):
        self.path.write_bytes(b"\n".join([json.dumps(ANSWER | changes).encode(), *lines[:1]]))
        try:
            assert read_records(self.path)
        except DataError as error:
            assert str(self.path) in str(error)


@functools.cache
def models() -> tuple[bytes, bytes]:
    texts = [f"number {i} of a few words, é" for i in range(99)]
    return train_sentencepiece(texts, 60), train_sentencepiece(texts, 350, lossless=True)


@functools.cache
def tokenizers() -> list[Any]:
    stored = [{"kind": "sentencepiece", "model": base64.b64encode(model).decode()} for model in models()]
    return [ByteTokenizer(), *(tokenizer_from_dict(json.loads(json.dumps(values))) for values in stored)]


class TestTokenizers:
    @draws(1000, TEXTS | st.text(st.sampled_from(string.printable + "▁é\0\ud800 "), max_size=200))
    def test_any_text(self, text):
        for tokenizer in tokenizers():
            try:
                ids = tokenizer.encode(text)
            except DataError:
                with pytest.raises(UnicodeEncodeError):
                    text.encode()
                continue
            assert all(0 <= id < tokenizer.vocab_size for id in ids)
            assert tokenizer.encode_document(text).min(initial=0) >= 0
            assert not tokenizer.lossless or tokenizer.decode(ids) == text

    @draws(500, st.lists(st.integers(-3, 400) | st.integers(), max_size=20))
    def test_any_ids(self, ids):
        for tokenizer in tokenizers():
            if all(0 <= id < tokenizer.vocab_size for id in ids):
                tokenizer.decode(ids).encode()
            else:
                with pytest.raises(DataError, match="is none of this tokenizer's"):
                    tokenizer.decode(ids)

    @draws(
        500,
        VALUES | st.fixed_dictionaries({"kind": st.sampled_from(["bytes", "sentencepiece"]) | TEXTS, "model": VALUES}),
    )
    def test_any_description(self, values):
        self.use(values)

    @draws(1000, st.sampled_from([0, 1]), st.integers(0, 2**32), st.integers(1, 20))
    def test_a_changed_model(self, which, seed, changes):
        rng, model = random.Random(seed), bytearray(models()[which])
        for _ in range(changes):
            at = rng.randrange(len(model))
            match rng.randrange(3):
                case 0:
                    model[at] = rng.randrange(256)
                case 1:
                    del model[at : at + rng.randrange(1, 9)]
                case _:
                    model[at:at] = rng.randbytes(rng.randrange(1, 9))
        self.use({"kind": "sentencepiece", "model": base64.b64encode(model).decode()})

    def use(self, values):
        """A tokenizer that was taken can be used."""
        try:
            tokenizer = tokenizer_from_dict(values)
        except UserError as error:
            assert "\n" not in str(error)
            return
        tokenizer.decode(tokenizer.encode("number 7 ▁\n é"))
        assert len(tokenizer.spelling) == tokenizer.vocab_size
