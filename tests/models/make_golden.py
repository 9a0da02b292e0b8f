"""Writes `golden/*.npz`: mixers of Hugging Face `transformers` on random weights and inputs of ours.

Needs torch and transformers (made with torch 2.13.0 and transformers 5.23.0). From the project's root:
    python tests/models/make_golden.py
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


class Case(NamedTuple):
    name: str
    kind: str  # "mamba" or "mamba2"
    settings: dict[str, int]  # of ModelConfig
    batch: int
    length: int


CASES = (
    Case("mamba_d8", "mamba", dict(d_model=8, expand=2, state_dim=4, conv_width=4), 2, 7),
    Case("mamba_rank2", "mamba", dict(d_model=24, expand=1, state_dim=16, conv_width=3), 1, 13),
    Case(
        "mamba2_g1",
        "mamba2",
        dict(d_model=8, expand=2, head_dim=4, groups=1, state_dim=8, conv_width=4, chunk=16),
        2,
        7,
    ),
    Case(
        "mamba2_g2_chunks",
        "mamba2",
        dict(d_model=16, expand=2, head_dim=8, groups=2, state_dim=4, conv_width=4, chunk=4),
        1,
        13,
    ),
    Case(
        "mamba2_g4_wide",
        "mamba2",
        dict(d_model=16, expand=2, head_dim=2, groups=4, state_dim=4, conv_width=2, chunk=5),
        2,
        9,
    ),
    Case(
        "mamba2_one_position",
        "mamba2",
        dict(d_model=16, expand=1, head_dim=4, groups=4, state_dim=3, conv_width=4, chunk=8),
        1,
        1,
    ),
)


def torch_output(case: Case, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Random weights for every parameter, an input, and what `transformers` makes of it (CPU, float32)."""
    import torch

    theirs = _torch_mixer(case).eval()
    rng = np.random.default_rng(seed)
    weights = {name: _draw(rng, name, tuple(old.shape)) for name, old in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    x = rng.standard_normal((case.batch, case.length, case.settings["d_model"])).astype(np.float32)
    with torch.no_grad():
        return weights, x, theirs(torch.from_numpy(x)).numpy()


def _torch_mixer(case: Case) -> Any:
    from transformers import Mamba2Config, MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    c = case.settings
    shared: dict[str, Any] = dict(
        hidden_size=c["d_model"], state_size=c["state_dim"], expand=c["expand"], conv_kernel=c["conv_width"]
    )
    if case.kind == "mamba":
        return MambaMixer(MambaConfig(**shared), layer_idx=0)
    heads = c["expand"] * c["d_model"] // c["head_dim"]
    config = Mamba2Config(**shared, num_heads=heads, head_dim=c["head_dim"], n_groups=c["groups"], chunk_size=8)
    return Mamba2Mixer(config, layer_idx=0)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32)
    match name:
        case "A_log" | "conv1d.bias" | "conv1d.weight":
            return 0.5 * values
        case "D" | "norm.weight":
            return 1 + 0.3 * values
        case "dt_bias" | "dt_proj.bias":
            return values - 2
        case _:
            return values / np.sqrt(shape[-1], dtype=np.float32)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for seed, case in enumerate(CASES):
        weights, x, y = torch_output(case, seed)
        path = GOLDEN / f"{case.name}.npz"
        np.savez_compressed(path, x=x, y=y, **{f"weights/{name}": w for name, w in weights.items()})
        print(f"{path.name}: {path.stat().st_size} bytes, output rms {np.sqrt((y**2).mean()):.3f}")


if __name__ == "__main__":
    main()
