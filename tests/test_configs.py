"""The recipes: every variant builds, says what it does, and stays what its name promises."""

import importlib.util
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from dimba_jax.config import ConfigError, RunConfig, from_config_dict, to_config_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.models.build import abstract_denoiser
from dimba_jax.recipes import choose, smoke

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "quickstart": ("", "smoke"),
    "qqp": ("", "smoke"),
    "mambadiff_qqp": ("", "7m", "97m", "smoke"),
    "diffuseq_qqp": ("", "7m", "97m", "smoke"),
    "qg": ("", "masked", "squad", "squad-masked", "squad-h", "smoke"),
    "simplification": ("", "masked", "asset", "asset-masked", "asset-h", "smoke"),
    "dialogue": ("", "smoke"),
    "qqp_masked": ("", "h", "tran", "long", "long-h", "long-tran", "ar", "ar-mamba", "smoke"),
    "wikitext2": ("", "h", "tran", "ar", "ar-mamba", "tiny", "tiny-ar"),
    "shakespeare": ("", "h", "tran", "ar", "ar-mamba", "tiny", "tiny-ar"),
    "diffumamba": (
        "", "240m", "240m-h", "240m-tran", "500m", "500m-h", "500m-tran", "1b3", "1b3-h", "1b3-tran", "h", "tran", "ar",
        "ar-mamba", "tiny", "tiny-h", "tiny-tran", "tiny-ar",
    ),
}  # fmt: skip
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
    vocab_size = ByteTokenizer.vocab_size if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size
    _, state = abstract_denoiser(config, vocab_size)
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
    with pytest.raises(ConfigError, match=rf"no variant ':8b'.*:{RECIPES[name][-1]}\b"):
        recipe(name).get_config("8b")


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_tells_command_hardware_and_variants(name):
    text = recipe(name).__doc__
    assert f"--config=configs/{name}.py" in text and "Hardware:" in text
    lines = re.findall(r"^  (:\w.*)$", text, re.MULTILINE)
    assert set(re.findall(r"(?<!\S):([\w-]+)", " ".join(lines))) == {arg for arg in RECIPES[name] if arg}


@pytest.mark.parametrize("name", ["mambadiff_qqp", "diffuseq_qqp"])
@pytest.mark.parametrize(("arg", "millions"), [("7m", 7.0), ("97m", 97.0)])
def test_sizes_are_those_of_their_names(name, arg, millions):
    assert parameters(run_config(name, arg)) == pytest.approx(millions * 1e6, rel=0.05)


def test_mambadiff_and_diffuseq_are_twins():
    mamba, transformer = run_config("mambadiff_qqp", "7m"), run_config("diffuseq_qqp", "7m")
    assert mamba.data == transformer.data and mamba.tokenizer == transformer.tokenizer
    assert mamba.process.timesteps == transformer.process.timesteps == 2000
    assert (mamba.model.pattern, transformer.model.pattern) == (("mamba",), ("attention",))


@pytest.mark.parametrize("name", [name for name in RECIPES if "smoke" in RECIPES[name] and name != "quickstart"])
def test_smoke_is_the_same_recipe_on_the_same_data(name):
    small, full = run_config(name, "smoke"), run_config(name, "")
    assert small.data == full.data and small.process == full.process
    assert (small.model.pattern, small.model.prompt_encoder) == (full.model.pattern, full.model.prompt_encoder)
    assert parameters(small) < 1e6 and small.model.dtype == "float32"


@pytest.mark.parametrize("name", ["qqp_masked", "wikitext2", "shakespeare"])
def test_twins_differ_in_the_network_and_in_what_was_chosen_for_each(name):
    for arg in set(RECIPES[name]) - {"", "long", "smoke", "tiny", "tiny-ar"}:
        of_long = name == "qqp_masked" and arg not in ("h", "tran")
        base = run_config(name, "long" if of_long else "")
        assert base.process.kind == "masked" and base.model.pattern == ("mamba2",)
        twin = run_config(name, arg)
        assert parameters(twin) == pytest.approx(parameters(base), rel=0.02), arg
        causal = arg.startswith("ar")
        for group in ("data", "tokenizer", "optimizer"):
            assert getattr(twin, group) == getattr(base, group), (arg, group)
        # what has been chosen for each: experiments/qqp
        steps = {"steps": 4500, "valid_every": 500} if causal and name == "qqp_masked" else {}
        assert twin.training == replace(base.training, **steps), arg
        apart = {"score": "margin", "padding_apart": True, "end_bias": 0.0} if name == "qqp_masked" else {}
        ends = {"end_bias": 0.0}  # left to right nothing is unmasked too early
        assert twin.sampling == replace(base.sampling, **(ends if causal else apart)), arg
        next_token = {"kind": "autoregressive", "weighting": "elbo"}
        assert twin.process == replace(base.process, **(next_token if causal else {})), arg
        assert twin.model.dropout == base.model.dropout and twin.name != base.name
        assert (twin.process.kind == "autoregressive") == (twin.model.direction == "causal") == causal
        every = twin.model.layers
        attention = {"h": 2, "long-h": 2, "tran": every, "long-tran": every, "ar": every, "ar-mamba": 0}[arg]
        assert layers(twin).count("attention") == attention
        assert layers(twin)[0] == ("mamba2" if arg == "ar-mamba" else "attention")


def test_longer_training_is_of_the_same_data_and_process():
    short, long = run_config("qqp_masked", ""), run_config("qqp_masked", "long")
    for group in ("data", "tokenizer", "optimizer", "process"):
        assert getattr(long, group) == getattr(short, group), group
    assert long.model == replace(short.model, state_dim=64, dropout=0.2)
    assert long.training == replace(short.training, steps=20000)
    assert long.sampling == replace(short.sampling, score="probability", padding_apart=False, end_bias=-2.0)
    assert parameters(long) == pytest.approx(parameters(short), rel=0.02) and long.name != short.name


def layers(config: RunConfig) -> list[str]:
    pattern = config.model.pattern
    return [pattern[i % len(pattern)] for i in range(config.model.layers)]


@pytest.mark.parametrize(
    ("size", "d_model", "depth", "billions"), [("240m", 960, 24, 25), ("500m", 960, 36, 50), ("1b3", 1920, 24, 120)]
)
def test_diffumamba_has_the_shapes_and_budgets_of_its_paper(size, d_model, depth, billions):
    for twin, attention, ratio in (("", [], 2), ("-h", list(range(0, depth, 5)), 2), ("-tran", list(range(depth)), 4)):
        config = run_config("diffumamba", size + twin)
        m = config.model
        assert (m.d_model, m.layers, m.state_dim, m.conv_width, m.expand) == (d_model, depth, 128, 4, 2)
        assert (m.direction, m.mlp_ratio, m.modulation, m.head) == ("untied", ratio, "adaln_zero", "untied")
        assert [i for i, mixer in enumerate(layers(config)) if mixer == "attention"] == attention
        o = config.optimizer
        assert (o.beta1, o.beta2, o.weight_decay, o.clip_norm, o.ema_decay) == (0.9, 0.95, 0.1, 1.0, 0.9999)
        assert config.training.batch_size * config.data.target_length == 512 * 1024
        assert config.training.steps * 512 * 1024 == pytest.approx(billions * 1e9, rel=1e-4)
    assert run_config("diffumamba", "") == run_config("diffumamba", "240m")
    for short in ("h", "tran"):
        assert run_config("diffumamba", short) == run_config("diffumamba", f"240m-{short}")


@pytest.mark.parametrize(("name", "arg"), [(name, arg) for name, arg in VARIANTS if arg.startswith("tiny")])
def test_tiny_variants_need_no_download_and_no_gpu(name, arg):
    config = run_config(name, arg)
    assert config.data.source == "text" and config.data.path == "" and config.data.source_length == 0
    assert config.tokenizer.kind == "bytes" and config.data.normalize == "none"
    assert parameters(config) < 1e6 and config.model.dtype == "float32"
    kind = "autoregressive" if arg.endswith("-ar") else "masked"
    assert config.process.kind == kind
    assert set(layers(config)) == {"tiny": {"mamba2"}, "tiny-h": {"attention", "mamba2"}}.get(arg, {"attention"})


@pytest.mark.parametrize("name", ["wikitext2", "shakespeare", "diffumamba"])
def test_likelihoods_are_of_the_text_itself(name):
    for arg in RECIPES[name]:
        config = run_config(name, arg)
        assert config.data.normalize == "none" and (config.tokenizer.kind == "bytes" or config.tokenizer.lossless)


@pytest.mark.parametrize(("name", "data"), [("qg", "squad"), ("simplification", "asset")])
def test_variants_for_few_pairs_are_the_same_systems_sampled_as_on_qqp(name, data):
    for arg, full, qqp in (("", "", run_config("qqp", "")), ("-masked", "masked", run_config("qqp_masked", ""))):
        few, base = run_config(name, data + arg), run_config(name, full)
        assert few.model == replace(base.model, dropout=0.3, scan_layers=False)
        assert few.tokenizer == base.tokenizer and few.process == replace(
            base.process, anchor_prob=qqp.process.anchor_prob
        )
        assert replace(few.sampling, batch_size=1) == replace(qqp.sampling, batch_size=1)
        assert few.training.steps * few.training.batch_size < base.training.steps * base.training.batch_size / 10
        assert few.data.train_files != base.data.train_files and few.name != base.name
        assert parameters(few) == pytest.approx(parameters(base), rel=0.02)
    mamba, hybrid = run_config(name, f"{data}-masked"), run_config(name, f"{data}-h")
    h = run_config("qqp_masked", "h").model
    own = {"pattern": h.pattern, "attention_mlp_ratio": h.attention_mlp_ratio}
    assert hybrid.model == replace(mamba.model, **own) and layers(hybrid).count("attention") == 2
    for group in ("data", "process", "sampling", "optimizer"):
        assert getattr(hybrid, group) == getattr(mamba, group), group


def test_choose_without_variants_says_so():
    with pytest.raises(ConfigError, match="choose one of none"):
        choose("big", {"": RunConfig()})


def test_smoke_leaves_its_argument_alone():
    config = RunConfig()
    smoke(config)
    assert config == RunConfig() == from_config_dict(to_config_dict(RunConfig()))
