"""Writes `golden/mamba2/`: a tiny Mamba-2 language model of Hugging Face `transformers`, and what it says.

Needs torch and transformers (made with torch 2.15.0 and transformers 5.23.0). From the project's root:
    python tests/interop/make_golden.py
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "mamba2"
VOCABULARY = 40


def make_model(seed: int, **settings: Any) -> Any:
    """A causal language model with a random value for every parameter (CPU, float32)."""
    import torch
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        **dict(
            hidden_size=16, num_hidden_layers=3, state_size=4, head_dim=8, num_heads=4, expand=2, conv_kernel=3,
            n_groups=2, chunk_size=8, vocab_size=VOCABULARY, tie_word_embeddings=False,
        )
        | settings
    )  # fmt: skip
    model = Mamba2ForCausalLM(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(_draw(rng, name, tuple(parameter.shape))))
    return model


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32)
    match name.removesuffix(".weight").rpartition(".")[2]:
        case "norm" | "norm_f" | "D":
            return 1 + 0.3 * values
        case "A_log" | "conv1d" | "bias":
            return 0.5 * values
        case "dt_bias":
            return values - 2
        case "embeddings":
            return 0.5 * values
        case _:
            return values / np.sqrt(shape[-1], dtype=np.float32)


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """(b, l) ids to (b, l, v) logits."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def main() -> None:
    model = make_model(0)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 11)).astype(np.int32)
    model.save_pretrained(GOLDEN)
    (GOLDEN / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(GOLDEN / "expected.npz", tokens=tokens, logits=logits_of(model, tokens))
    for path in sorted(GOLDEN.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
