"""The recipes: every variant builds, says what it does, and stays what its name promises."""

import importlib.util
import math
import re
from pathlib import Path

import jax
import pytest

from dimba_jax.config import ConfigError, RunConfig, from_config_dict, to_config_dict
from dimba_jax.recipes import choose, smoke
from dimba_jax.training.setup import abstract_denoiser

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "quickstart": ("", "smoke"),
    "qqp": ("", "smoke"),
    "mambadiff_qqp": ("", "7m", "97m", "smoke"),
    "diffuseq_qqp": ("", "7m", "97m", "smoke"),
    "qg": ("", "smoke"),
    "simplification": ("", "smoke"),
    "dialogue": ("", "smoke"),
}
VARIANTS = [(name, arg) for name, args in RECIPES.items() for arg in args]


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_config(name: str, arg: str) -> RunConfig:
    return from_config_dict(recipe(name).get_config(arg))


def parameters(config: RunConfig) -> int:
    _, state = abstract_denoiser(config, config.tokenizer.vocab_size)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def test_no_recipe_is_left_out():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(RECIPES)


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_variant_builds_a_model(name, arg):
    config = run_config(name, arg)
    assert parameters(config) > 0
    assert config.training.steps > config.optimizer.warmup_steps


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_locked(name):
    config = recipe(name).get_config()
    with pytest.raises((KeyError, AttributeError)):
        config.model.d_modle = 1


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_names_the_known(name):
    with pytest.raises(ConfigError, match=r"no variant ':8b'.*:smoke"):
        recipe(name).get_config("8b")


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_tells_command_hardware_and_variants(name):
    text = recipe(name).__doc__
    assert f"--config=configs/{name}.py" in text and "Hardware:" in text
    assert set(re.findall(r"^  :(\w+) ", text, re.MULTILINE)) == {arg for arg in RECIPES[name] if arg}


@pytest.mark.parametrize("name", ["mambadiff_qqp", "diffuseq_qqp"])
@pytest.mark.parametrize(("arg", "millions"), [("7m", 7.0), ("97m", 97.0)])
def test_sizes_are_those_of_their_names(name, arg, millions):
    assert parameters(run_config(name, arg)) == pytest.approx(millions * 1e6, rel=0.05)


def test_mambadiff_and_diffuseq_are_twins():
    mamba, transformer = run_config("mambadiff_qqp", "7m"), run_config("diffuseq_qqp", "7m")
    assert mamba.data == transformer.data and mamba.tokenizer == transformer.tokenizer
    assert mamba.process.timesteps == transformer.process.timesteps == 2000
    assert (mamba.model.pattern, transformer.model.pattern) == (("mamba",), ("attention",))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "quickstart"])
def test_smoke_is_the_same_recipe_on_the_same_data(name):
    small, full = run_config(name, "smoke"), run_config(name, "")
    assert small.data == full.data and small.process == full.process
    assert (small.model.pattern, small.model.prompt_encoder) == (full.model.pattern, full.model.prompt_encoder)
    assert parameters(small) < 1e6 and small.model.dtype == "float32"


def test_choose_without_variants_says_so():
    with pytest.raises(ConfigError, match="choose one of none"):
        choose("big", {"": RunConfig()})


def test_smoke_leaves_its_argument_alone():
    config = RunConfig()
    smoke(config)
    assert config == RunConfig() == from_config_dict(to_config_dict(RunConfig()))
