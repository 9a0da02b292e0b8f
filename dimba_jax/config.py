"""The configuration of a run: frozen dataclasses, checked once, at the edge.

A recipe in `configs/` returns an `ml_collections.ConfigDict`; `from_config_dict` turns it into a
`RunConfig`, and no ConfigDict is seen past that line. A checkpoint carries `to_dict(config)`, so
sampling needs no recipe. Field comments give the meaning; the defaults are DIMBA's on paraphrase.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dimba_jax.config_checks import check
from dimba_jax.config_values import build
from dimba_jax.errors import ConfigError as ConfigError  # for those who read it here


@dataclass(frozen=True)
class SyntheticConfig:
    """The generated question paraphrases (`data/synthetic.py`)."""

    pairs: int = 12_000  # over all splits; the grammar holds more
    seed: int = 0


@dataclass(frozen=True)
class TextConfig:
    """How running text (`data.source="text"`) becomes rows of `target_length`; it has no source side.

    A folder's splits are the files that `train_files`, `valid_file` and `test_file` name; of a single file,
    or of the standard library's source, the last shares are held out.
    """

    layout: Literal["packed", "padded"] = "packed"  # one stream cut into full rows, or each line a row of its own
    valid_fraction: float = 0.1  # of a single text, behind the part that is trained on
    test_fraction: float = 0.0  # of a single text, at its end


@dataclass(frozen=True)
class DataConfig:
    """Where pairs or texts come from and how they are laid out in a row of `source_length + target_length`."""

    source: Literal["jsonl", "quora_tsv", "hub", "synthetic", "text"] = "jsonl"
    path: str = ""  # jsonl: a folder; quora_tsv: a file; hub: a dataset id or a local folder; text: a file or a
    # folder, or nothing for the Python standard library's own source on this machine
    train_files: tuple[str, ...] = ("train*.jsonl",)  # jsonl only: names, patterns, row ranges (data/jsonl.py)
    valid_file: str = "valid.jsonl"
    test_file: str = "test.jsonl"
    columns: tuple[str, str] = (
        "src",
        "trg",
    )  # keys of source and target (jsonl, hub); a row's `refs`, if any, are taken
    # as its targets
    train_extra_direction: bool = False  # paraphrase: each training pair is used both ways round
    source_length: int = 32  # positions, the end token included
    target_length: int = 32
    normalize: Literal["none", "lower", "bert_basic"] = "bert_basic"
    workers: int = 0  # grain worker processes; 0 reads in this one
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(frozen=True)
class TokenizerConfig:
    kind: Literal["sentencepiece", "bytes"] = "sentencepiece"
    vocab_size: int = 8192  # an upper bound: a small corpus may hold fewer pieces
    model: str = ""  # a trained .model file; empty trains one on the training split
    lossless: bool = False  # sentencepiece: white space is kept and characters without a piece are spelt in bytes,
    # so that likelihoods a byte are those of the text itself


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser. `pattern` names the mixers of consecutive blocks and repeats over `layers`."""

    embedding_dim: int = 128  # e: width of the space a Gaussian diffusion lives in; token models embed in d_model
    d_model: int = 512
    layers: int = 8
    pattern: tuple[str, ...] = ("mamba2",)  # of "attention", "mamba", "mamba2"
    direction: Literal["causal", "untied", "tied", "shared"] = "untied"
    mlp_ratio: float = 4.0  # hidden width of the SwiGLU MLP over d_model, times 2/3; 0 leaves it out
    attention_mlp_ratio: float = -1.0  # the same for the blocks whose mixer is attention; -1: as mlp_ratio
    dropout: float = 0.0
    # mixers
    expand: int = 2  # d_inner = expand * d_model
    state_dim: int = 64  # n
    head_dim: int = 64  # p, of Mamba-2 and of attention
    groups: int = 1  # g, Mamba-2's B/C groups
    conv_width: int = 4
    # conditioning
    modulation: Literal["film", "additive", "adaln_zero"] = "film"  # how t (and the pooled prompt) enter
    condition_dim: int = 0  # c: width of what modulates the blocks; 0: d_model (MDLM and DiffuMamba: 128)
    # "frozen" keeps the random weights it starts with unless FrozenEncoder.load gives it others
    prompt_encoder: Literal["none", "mlp", "mixer", "frozen"] = "none"
    prompt_layers: int = 2
    pooled_prompt: bool = False  # the pooled prompt joins t in the modulation
    context: Literal["clean", "encoder", "none"] = "clean"  # what stands at the source positions:
    # its clean embeddings (partial noising), the prompt encoder's outputs, or nothing
    self_conditioning: bool = True
    # "learned": each position of the sequence has an embedding (pairs alone; not in prompt encoders). Attention is
    # rotary in any case
    positions: Literal["none", "learned"] = "none"
    head: Literal["tied", "untied"] = "tied"  # rounding / logits head: the embedding table or its own
    normalize_embeddings: bool = True  # rows of the table rescaled to unit variance per component
    # compute
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matmuls; parameters stay float32
    # what a layer keeps of its activations for the backward pass: all; nothing; the results of its weight matmuls;
    # those, and what its scans and fused attention read and returned. The rest is computed again.
    remat: Literal["none", "full", "dots", "kernels"] = "none"
    scan_layers: bool = True
    implementation: Literal["auto", "reference", "xla", "gpu", "tpu"] = "auto"  # of the scan kernels
    chunk: int = 64  # SSD chunk length

    @property
    def condition_width(self) -> int:
        """c, resolved."""
        return self.condition_dim or self.d_model


@dataclass(frozen=True)
class ProcessConfig:
    """The diffusion process and its loss."""

    # gaussian: on embeddings; masked: absorbing, on tokens; autoregressive: next token (direction="causal")
    kind: Literal["gaussian", "masked", "autoregressive"] = "gaussian"
    schedule: Literal["cosine", "sqrt", "linear", "log_snr", "learned", "log_linear"] = "cosine"
    timesteps: int = 1000  # T: training draws t from {1..T}/T; sampling takes any number of steps up to T
    noise_scale: float = 1.0  # SNR is divided by its square (log-SNR shift -2 log noise_scale)
    zero_terminal_snr: bool = False
    prediction: Literal["x0", "v", "epsilon", "logits"] = "x0"
    mse_weight: float = 1.0
    ce_weight: float = 1.0
    prior_weight: float = 1.0
    loss_on: Literal["target", "all"] = "target"
    loss_on_padding: bool = True  # PAD behind the target's end token is learned like any token
    min_snr_gamma: float = 0.0  # 0: off
    timestep_sampling: Literal["uniform", "stratified", "importance"] = "stratified"
    self_condition_prob: float = 0.5
    condition_dropout: float = 0.0  # > 0 trains the unconditional model that guidance needs
    anchor_prob: float = 0.0  # Gaussian: share of rows in which a part of the target stays clean too, drawn uniformly
    # in [0, 1] for each row (partial noising, of targets); > 0 trains what sampling.anchors needs
    # masked
    time_conditioning: bool = True  # False tells the network t = 0 throughout
    block_size: int = 0  # block diffusion: positions a block, left to right; 0: one block of all positions
    time_range: tuple[float, float] = (1e-3, 1.0)  # training draws t uniformly from it (BD3-LM's clipped schedule)
    search_time_range: bool = False  # each validation takes the range of least NELBO variance (block diffusion)
    weighting: Literal["elbo", "linear", "none"] = "elbo"  # of a masked position: -alpha'/(1-alpha) (the NELBO),
    # 1 - t + 1/T (RDM), or 1; the last two train something else than a likelihood bound
    label_smoothing: float = 0.0
    distillation: float = 0.0  # share of a masked position's training loss that is the cross-entropy of
    # training.teachers, the rest being the data's as without them, smoothed labels too; validation is of the data alone


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"  # decay after the warm-up, to 0
    warmup_steps: int = 200
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # of the whole gradient; 0: off
    ema_decay: float = 0.999


@dataclass(frozen=True)
class TrainingConfig:
    steps: int = 10_000
    batch_size: int = 512  # rows a step, over all processes
    accumulate: int = 1  # microbatches a step; batch_size must be divisible
    log_every: int = 50
    sample_every: int = 0  # steps between sample texts in the log; 0: only at the end
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_skipped_steps: int = 5  # a step whose loss or gradient is not finite is skipped; so many in a row end the run
    valid_every: int = 0  # steps between validation losses; 0: only at the end
    valid_batches: int = 8
    teachers: str = ""  # workdirs of trained models, with commas between them, whose mean distribution is learned from
    init_from: str = ""  # a pretrained Mamba-2 checkpoint to start from (interop/pretrained_mamba2.py)


@dataclass(frozen=True)
class SamplingConfig:
    # Gaussian: ddpm, ddim, dpmpp. Masked: ancestral (two draws a position), confidence (the surest ones),
    # low_confidence (LLaDA: writes all, masks the least sure of what it wrote again), remdm. Autoregressive models
    # write left to right, whatever is named here.
    sampler: Literal["ddpm", "ddim", "dpmpp", "ancestral", "confidence", "low_confidence", "remdm"] = "ddim"
    steps: int = 50  # network calls of one block, or of the whole row
    eta: float = 0.0  # DDIM's share of ancestral noise
    guidance: float = 1.0  # 1: off; > 1 needs a model trained with condition_dropout
    clamp_from: float = 1.0  # predictions at t <= clamp_from are rounded to the nearest embedding; 0: never
    temperature: float = 1.0  # Gaussian: standard deviation of the starting noise; else of the token distribution,
    # 0 takes the most probable
    num_samples: int = 1
    batch_size: int = 256  # rows of one compiled call, samples counted
    anchors: bool = False  # Gaussian: every step makes the positions it is surest of (`score`) clean tokens that the
    # others are diffused around, an even share of them
    mean_temperature: float = 1.0  # Gaussian, prediction="logits": of the tokens whose mean embedding estimates x0
    early_exit: int = 0  # stop after so many steps without a changed token; 0: never
    ema: bool = True
    end_bias: float = 0.0  # added to the logits of the end token and of padding: below 0 texts become longer
    # token models
    top_k: int = 0  # tokens drawn among the k most probable; 0: all
    top_p: float = 1.0  # tokens drawn among the fewest that hold this probability
    score: Literal["probability", "margin", "entropy"] = "probability"  # what makes a position sure (anchors, too)
    threshold: float = 0.0  # confidence: unmask every position surer than this, one at least; 0: an even share a step
    score_noise: float = 0.0  # temperature of Gumbel noise on the log-scores, fading with t (MaskGIT)
    padding_apart: bool = False  # confidence, anchors: where padding is most probable positions are written at a rate
    # of their own, one a step at least, so that words are spread over the steps
    revise: bool = False  # low_confidence: what has been written may be masked again (Mask-Predict)
    reuse_logits: bool = False  # ancestral: no network call after a step that changed no token (no time conditioning)
    remask: Literal["cap", "rescale", "loop"] = "cap"  # of remdm
    remask_strength: float = 0.05  # remdm: sigma's cap, or its share of the greatest possible
    remask_window: tuple[float, float] = (0.05, 0.55)  # remdm loop: from t = the second to the first it only re-masks
    block_size: int = 0  # left-to-right blocks; 0: the model's own, or none
    cache: Literal["none", "prefix", "dual"] = "none"  # Fast-dLLM, for a model trained without blocks
    length: Literal["model", "first"] = "model"  # first: one call chooses the target's length before its words
    length_bias: float = 0.0  # added, in tokens, to the length so chosen


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left over. See `parallel.RULES` for what lies where."""

    data: int = -1  # rows
    fsdp: int = 1  # rows, and the parameters' model axis: a device keeps a part of them and gathers what it needs
    tensor: int = 1  # heads and channels, and the parameters' inner axis
    sequence: int = 1  # positions


@dataclass(frozen=True)
class RunConfig:
    name: str = "dimba"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def from_config_dict(values: Mapping[str, Any]) -> RunConfig:
    """Builds a checked `RunConfig` from a ConfigDict or from the JSON a checkpoint holds.

    Raises:
      ConfigError: an unknown key (the nearest known one is named), a value of the wrong type or
        outside its choices, or settings that contradict each other.
    """
    to_plain = getattr(values, "to_dict", None)
    config = build(RunConfig, to_plain() if to_plain else values, "config")
    check(config)
    return config


def to_config_dict(config: RunConfig):
    """The `ml_collections.ConfigDict` of a config, locked: what a recipe returns."""
    import ml_collections

    return ml_collections.ConfigDict(to_dict(config)).lock()


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain, JSON-ready values (tuples stay tuples, which JSON writes as lists)."""
    return dataclasses.asdict(config)
