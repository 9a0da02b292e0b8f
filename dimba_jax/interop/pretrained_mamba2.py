"""Starting from a pretrained Mamba-2: an autoregressive checkpoint becomes the forward half of a denoiser.

    python -m dimba_jax.interop.pretrained_mamba2 FOLDER      # the settings a run needs to take it

The folder is one of Hugging Face `transformers` (Mamba2ForCausalLM) or of state-spaces' `mamba_ssm`
(MambaLMHeadModel with Mamba2 layers): config.json beside model.safetensors or pytorch_model.bin.

Where the model looks both ways, the reverse direction starts as a copy of the forward one: it reads mirrored
text as if it ran forwards. Both output projections are halved, so that a layer adds the mean of its two
directions to the residual stream: where they agree, exactly what the checkpoint's layer adds; all later layers,
which learned to read a stream of that scale, still find it.

The modulation by t starts as none. The gates of modulation='adaln_zero', which otherwise start closed, start
at 1: closed, they would hide what was pretrained. The mask's (or begin token's) row of the table, which no
checkpoint has, is the mean of the others.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from dimba_jax.config import ConfigError, ModelConfig, RunConfig
from dimba_jax.data.tokenizers import SPECIALS
from dimba_jax.interop.transformers_mixers import load_mixer
from dimba_jax.interop.weight_files import read_weights
from dimba_jax.models.mixers import Causal, Mamba2Core
from dimba_jax.models.norm import EPSILON

DIRECTIONS = ("causal", "untied", "tied")
BYTES = 256

# what a checkpoint may not do otherwise, by either library's names
TRANSFORMERS_FIXED = {
    "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": EPSILON,
}  # fmt: skip
STATE_SPACES_FIXED = {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True, "norm_epsilon": EPSILON}
STATE_SPACES_LAYER_FIXED = {
    "layer": "Mamba2", "bias": False, "conv_bias": True, "rmsnorm": True, "norm_before_gate": False,
    "D_has_hdim": False, "d_ssm": None, "activation": "swish",
}  # fmt: skip


def model_settings(directory: str | Path) -> dict[str, Any]:
    """The settings of `ModelConfig` that a checkpoint asks for, and its `vocab_size` (without padding rows).

    Raises:
      ConfigError: no checkpoint there, or one of another architecture.
    """
    path = Path(directory) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"config.training.init_from={directory}: {path} cannot be read; give the folder of a Mamba-2 checkpoint"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: expected a JSON object")
    settings = _of_state_spaces(values, path) if "ssm_cfg" in values else _of_transformers(values, path)
    return settings | {"pattern": ("mamba2",), "mlp_ratio": 0.0}


def _of_transformers(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if values.get("model_type") != "mamba2":
        raise ConfigError(f"{path}: model_type is {values.get('model_type')!r}, expected 'mamba2'")
    _demand(values, TRANSFORMERS_FIXED, path)
    low, high = values.get("time_step_limit", (0.0, float("inf")))
    if low != 0.0 or not _endless(high):
        raise ConfigError(f"{path}: time_step_limit is {[low, high]}; only steps without a limit are supported")
    # a value that is missing has the default of transformers' Mamba2Config
    return {
        "d_model": values.get("hidden_size", 4096),
        "layers": values.get("num_hidden_layers", 64),
        "state_dim": values.get("state_size", 128),
        "head_dim": values.get("head_dim", 64),
        "groups": values.get("n_groups", 8),
        "expand": values.get("expand", 2),
        "conv_width": values.get("conv_kernel", 4),
        "head": "tied" if values.get("tie_word_embeddings", False) else "untied",
        "vocab_size": values.get("vocab_size", 32768),
    }


def _endless(value: Any) -> bool:
    """JSON has no infinity: transformers writes a word, or a tagged object."""
    return value in (float("inf"), "Infinity", {"__float__": "Infinity"})


def _of_state_spaces(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    layer = values["ssm_cfg"]
    _demand(values, STATE_SPACES_FIXED, path)
    _demand({"layer": "Mamba1"} | layer, STATE_SPACES_LAYER_FIXED, path)
    low, high = layer.get("dt_limit", (0.0, float("inf")))
    if low != 0.0 or not _endless(high):
        raise ConfigError(f"{path}: dt_limit is {[low, high]}; only steps without a limit are supported")
    # a value that is missing has the default of mamba_ssm's MambaConfig and Mamba2
    return {
        "d_model": values.get("d_model", 2560),
        "layers": values.get("n_layer", 64),
        "state_dim": layer.get("d_state", 128),
        "head_dim": layer.get("headdim", 64),
        "groups": layer.get("ngroups", 1),
        "expand": layer.get("expand", 2),
        "conv_width": layer.get("d_conv", 4),
        "head": "tied" if values.get("tie_embeddings", True) else "untied",
        "vocab_size": values.get("vocab_size", 50277),
    }


def _demand(values: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise ConfigError(f"{path}: {name} is {values[name]!r}; only {expected!r} is supported")


def initial_params(config: RunConfig, params: PyTree, directory: str | Path) -> PyTree:
    """A TokenDenoiser's fresh parameters with those of a checkpoint in the place of all that it has.

    The tokenizer must be the checkpoint's. Those supported: a sentencepiece model (`config.tokenizer.model`),
    and bytes, either in this library's ids (259 of them) or raw (256: the end token and the like then start as
    the mean of the bytes). A `tokenizer.json` is neither.

    Args:
      params: nested dict of arrays, `nnx.to_pure_dict(nnx.state(denoiser, nnx.Param))`; they keep their sharding.
      directory: the folder of the checkpoint.

    Raises:
      ConfigError: the model's settings or its tokenizer are not the checkpoint's (all that differ are named with
        the values to set), or the folder's files do not belong together.
    """
    settings = model_settings(directory)
    _check_settings(config, settings, directory)
    weights = _named_alike(read_weights(Path(directory)))
    take = functools.partial(_take, weights, directory)
    table, head = _vocabulary(config, settings, weights, params["table"].shape[0] - 1, directory)
    mixer = Causal(Mamba2Core, config.model, rngs=nnx.Rngs(0))  # every layer passes through it
    layers = [_layer(mixer, config.model, weights, i, directory) for i in range(settings["layers"])]
    block: dict[str, Any] = {
        "mixer": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "mixer_norm": {
            "norm": {"scale": np.stack([take(f"backbone.layers.{i}.norm.weight") for i in range(len(layers))])}
        },
    }
    if config.model.modulation == "adaln_zero" and "modulation" in params["stack"]["groups"]["blocks"][0]["mixer_norm"]:
        d = config.model.d_model
        bias = np.zeros((len(layers), 3 * d), np.float32)
        bias[:, 2 * d :] = 1.0  # [scale, shift, gate]
        block["mixer_norm"]["modulation"] = {"bias": bias}
    found = {
        "table": table,
        "stack": {"groups": {"blocks": {0: block}}},
        "norm": {"norm": {"scale": take("backbone.norm_f.weight")}},
    }
    if config.model.head == "untied":
        found["head"] = {"kernel": head.T}
    if weights:
        raise ConfigError(f"{directory} holds weights that have no place: {', '.join(sorted(weights)[:3])}")
    return _merged(params, found, str(directory))


def _check_settings(config: RunConfig, settings: Mapping[str, Any], directory: str | Path) -> None:
    m = config.model
    if config.process.kind == "gaussian":
        raise ConfigError(
            "config.training.init_from needs process.kind 'masked' or 'autoregressive': a checkpoint of tokens has no "
            "weights for a diffusion of embeddings"
        )
    if m.direction not in DIRECTIONS:
        raise ConfigError(
            f"config.model.direction={m.direction!r}: with config.training.init_from choose one of "
            f"{', '.join(DIRECTIONS)}"
        )
    wrong = {
        name: value
        for name, value in settings.items()
        # a head of its own can start as a copy of the table, but not the other way round
        if name != "vocab_size" and getattr(m, name) != value and (name, value) != ("head", "tied")
    }
    if wrong:
        have = ", ".join(f"{name}={getattr(m, name)!r}" for name in wrong)
        raise ConfigError(f"{directory} has another shape than the model ({have}): set {as_flags(wrong)}")


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings of the model as the command line takes them."""
    shown = {name: f'"{value}"' if isinstance(value, tuple) else value for name, value in settings.items()}
    return " ".join(f"--config.model.{name}={value}" for name, value in shown.items())


def _named_alike(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """mamba_ssm calls the table "embedding", transformers "embeddings"; the rest has the same names."""
    return {name.replace("backbone.embedding.", "backbone.embeddings."): value for name, value in weights.items()}


def _vocabulary(
    config: RunConfig, settings: Mapping[str, Any], weights: dict[str, np.ndarray], size: int, directory: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """The table with a row for the mask, (size + 1, d), and the rows of the head, (size, d)."""
    if config.tokenizer.kind == "sentencepiece" and not config.tokenizer.model:
        raise ConfigError(
            f"{directory} comes with its own tokenizer, and this run would train another: set "
            "config.tokenizer.model to the checkpoint's sentencepiece .model, or config.tokenizer.kind='bytes' for a "
            "model of bytes; a tokenizer.json is not supported"
        )
    table = _take(weights, directory, "backbone.embeddings.weight")
    tied = settings["head"] == "tied"
    own = weights.pop("lm_head.weight", None)  # mamba_ssm stores a tied head too
    if own is None and not tied:
        raise ConfigError(f"{directory} lacks lm_head.weight, which its config.json promises")
    head = table if tied or own is None else own
    table, head = (_rows(config, settings, rows, size, directory) for rows in (table, head))
    return np.concatenate([table, table.mean(0, keepdims=True)]), head


def _rows(
    config: RunConfig, settings: Mapping[str, Any], rows: np.ndarray, size: int, directory: str | Path
) -> np.ndarray:
    """The rows of this run's tokens."""
    pieces = settings["vocab_size"]
    if config.tokenizer.kind == "bytes" and pieces == BYTES:
        mean = np.tile(rows[:BYTES].mean(0), (SPECIALS, 1))
        return np.concatenate([mean, rows[:BYTES]])
    if size not in (pieces, len(rows)):
        padded = "" if len(rows) == pieces else f" (in {len(rows)} rows)"
        raise ConfigError(
            f"{directory} has {pieces} tokens{padded}, this run's tokenizer {size}: take the checkpoint's own. "
            "Supported are its sentencepiece .model (config.tokenizer.model) and bytes (config.tokenizer.kind, "
            f"{BYTES} or {BYTES + SPECIALS} of them); a tokenizer.json is not"
        )
    return rows[:size]


def _layer(
    mixer: Causal, m: ModelConfig, weights: dict[str, np.ndarray], number: int, directory: str | Path
) -> dict[str, Any]:
    """The parameters of one layer's mixer, in the layout of the model's direction."""
    prefix = f"backbone.layers.{number}.mixer."
    names = [name for name in weights if name.startswith(prefix)]
    try:
        load_mixer(mixer, {name.removeprefix(prefix): weights.pop(name) for name in names})
    except ValueError as error:
        raise ConfigError(f"{directory}, layer {number}: {error}") from None
    causal = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(mixer, nnx.Param)))
    if m.direction == "causal":
        return causal
    core, W, V = causal["core"], causal["in_proj"]["kernel"], 0.5 * causal["out_proj"]["kernel"]
    if m.direction == "untied":
        W, V = np.concatenate([W, W], axis=1), np.concatenate([V, V], axis=0)
    return {"forward": core, "backward": core, "in_proj": {"kernel": W}, "out_proj": {"kernel": V}}


def _take(weights: dict[str, np.ndarray], directory: str | Path, name: str) -> np.ndarray:
    if name not in weights:
        raise ConfigError(f"{directory} lacks {name}: its weights are not those of a Mamba-2 language model")
    return weights.pop(name)


def _merged(params: PyTree, found: Mapping[Any, Any], where: str) -> PyTree:
    """`params` with the leaves of `found` in their places."""
    out = dict(params)
    for name, value in found.items():
        if isinstance(value, Mapping):
            out[name] = _merged(params[name], value, f"{where}/{name}")
            continue
        if value.shape != params[name].shape:
            raise ConfigError(f"{where}/{name}: has shape {value.shape}, the model expects {params[name].shape}")
        out[name] = jax.device_put(np.asarray(value, params[name].dtype), params[name].sharding)
    return out


def main(argv: Sequence[str]) -> int:
    """Prints the settings that the checkpoint in the folder `argv[1]` asks for; returns the exit status."""
    if len(argv) != 2:
        print("give one folder: python -m dimba_jax.interop.pretrained_mamba2 FOLDER", file=sys.stderr)
        return 2
    try:
        settings = model_settings(argv[1])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{settings.pop('vocab_size')} tokens\n{as_flags(settings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
