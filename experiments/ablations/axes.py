"""What is varied: DIMBA is trained once for each line, which names the settings that differ from the base.

A base is a recipe and the settings that make DIMBA of it, small. Both have the prompt encoder, FiLM and the clean
prompt in the sequence, so that a run means the same over either.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from recipe_files import recipe

Settings = dict[str, Any]


def with_settings(values: dict[str, Settings], settings: Settings) -> dict[str, Settings]:
    """A config's values with some of them replaced, "group.name" each."""
    values = copy.deepcopy(values)
    for key, value in settings.items():
        group, name = key.split(".")
        if name not in values[group]:
            raise KeyError(f"config.{key} is no setting")
        values[group][name] = value
    return values


@dataclass(frozen=True)
class Base:
    recipe: str
    layers: int
    settings: Settings
    rows: int  # of the validation split that are sampled
    needs_data: bool = False

    @functools.cached_property
    def values(self) -> dict[str, Settings]:
        """All settings of its config, by group."""
        return with_settings(recipe(self.recipe).get_config().to_dict(), self.settings | {"model.layers": self.layers})


class Run(NamedTuple):
    axis: str
    name: str
    settings: Settings
    sampling: tuple[str, ...] = ("",)  # grids of experiments/sweep.py; "" is the recipe's own sampling
    more_layers: int = 0

    def over(self, base: Base) -> Settings:
        """Settings of this run that are not the recipe's."""
        return base.settings | {"model.layers": base.layers + self.more_layers} | self.settings


def differing(base: Base, run: Run) -> Settings:
    """What a run sets to another value than the base has."""
    settings = run.over(base)
    return {key: value for key, value in settings.items() if base.values[key.split(".")[0]][key.split(".")[1]] != value}


DIMBA: Settings = {
    "model.prompt_encoder": "mixer", "model.prompt_layers": 1, "model.pooled_prompt": True, "model.context": "clean",
    "training.valid_every": 0,
}  # fmt: skip
PLAIN_DDIM: Settings = {  # without what the recipe of QQP adds; anchors are an axis of their own
    "process.anchor_prob": 0.0, "sampling.anchors": False, "sampling.padding_apart": False, "sampling.eta": 1.0,
    "sampling.temperature": 1.0,
}  # fmt: skip
SMALL: Settings = {
    "model.d_model": 384, "model.dropout": 0.1, "optimizer.ema_decay": 0.995, "training.steps": 1500,
    "sampling.batch_size": 2048,
}  # fmt: skip
BASES = {
    # two CPU cores: one or two minutes a run
    "generated": Base("quickstart", 2, DIMBA | {"training.steps": 500}, 600),
    # one GPU
    "qqp": Base("qqp", 4, DIMBA | PLAIN_DDIM | SMALL, 2048, needs_data=True),
}

X0: Settings = {"process.prediction": "x0", "process.mse_weight": 1.0, "model.head": "tied"}
COSINE: Settings = {"process.schedule": "cosine", "process.noise_scale": 2.0}


def schedule(name: str, noise_scale: float, **more: object) -> Settings:
    return {"process.schedule": name, "process.noise_scale": noise_scale} | {f"process.{k}": v for k, v in more.items()}


def prompt(encoder: bool, pooled: bool, context: str) -> Settings:
    return {
        "model.prompt_encoder": "mixer" if encoder else "none",
        "model.pooled_prompt": pooled,
        "model.context": context,
    }


STEPS = "steps=5,10,20,50,100"
RUNS = (
    Run("base", "base", {}),
    Run("sampler", "base", {}, (
        f"{STEPS};sampler=ddim;eta=0", f"{STEPS};sampler=ddim;eta=1", f"{STEPS};sampler=dpmpp", f"{STEPS};sampler=ddpm",
    )),
    Run("noise schedule", "learned, noise x 1", schedule("learned", 1.0)),
    Run("noise schedule", "sqrt, noise x 1", schedule("sqrt", 1.0)),
    Run("noise schedule", "sqrt, noise x 2", schedule("sqrt", 2.0)),
    Run("noise schedule", "sqrt, noise x 2, zero-terminal", schedule("sqrt", 2.0, zero_terminal_snr=True)),
    Run("noise schedule", "cosine, noise x 1", schedule("cosine", 1.0)),
    Run("noise schedule", "cosine, noise x 2", schedule("cosine", 2.0)),
    Run("noise schedule", "cosine, noise x 4", schedule("cosine", 4.0)),
    Run("noise schedule", "linear, noise x 1", schedule("linear", 1.0)),
    Run("noise schedule", "linear, noise x 2", schedule("linear", 2.0)),
    Run("noise schedule", "linear, noise x 2, zero-terminal", schedule("linear", 2.0, zero_terminal_snr=True)),
    Run("conditioning", "in sequence alone", prompt(False, False, "clean")),
    Run("conditioning", "in sequence alone, a layer more", prompt(False, False, "clean"), more_layers=1),
    Run("conditioning", "in sequence, encoded", prompt(True, False, "encoder")),
    Run("conditioning", "in sequence, encoded, and pooled in FiLM", prompt(True, True, "encoder")),
    Run("conditioning", "pooled in FiLM alone", prompt(True, True, "none")),
    Run("conditioning", "both, additive", {"model.modulation": "additive"}),
    Run("conditioning", "both, AdaLN-zero", {"model.modulation": "adaln_zero"}),
    Run("prediction", "x0 with MSE, tied head", X0),
    Run("prediction", "x0 with MSE, tied head, cosine x 2", X0 | COSINE),
    Run("prediction", "v with MSE, tied head, cosine x 2", X0 | COSINE | {"process.prediction": "v"}),
    Run(
        "prediction", "epsilon with MSE and min-SNR 5, tied head, cosine x 2",
        X0 | COSINE | {"process.prediction": "epsilon", "process.min_snr_gamma": 5.0},
    ),
    Run("self-conditioning", "without", {"model.self_conditioning": False}),
    Run("loss", "on the prompt, too", {"process.loss_on": "all"}),
    Run("loss", "not on padding", {"process.loss_on_padding": False}),
    Run("direction", "causal", {"model.direction": "causal"}),
    Run("direction", "both, tied", {"model.direction": "tied"}),
    Run("direction", "both, untied", {"model.direction": "untied"}),
    Run("direction", "both, shared", {"model.direction": "shared"}),
    Run("mixer", "Mamba, tied", {"model.pattern": ("mamba",), "model.direction": "tied"}),
    Run("mixer", "attention and Mamba-2", {"model.pattern": ("attention", "mamba2")}),
    Run("mixer", "attention", {"model.pattern": ("attention",)}),
    Run("guidance", "prompt left out of a tenth", {"process.condition_dropout": 0.1}, ("guidance=1,1.5,2,3",)),
    Run("anchors", "in half of the rows", {"process.anchor_prob": 0.5}, ("anchors=False,True",)),
)  # fmt: skip
