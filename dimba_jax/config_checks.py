"""What a configuration's values must satisfy beyond their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dimba_jax.errors import ConfigError

if TYPE_CHECKING:
    from dimba_jax.config import RunConfig


def check(c: RunConfig) -> None:
    """Refuses values out of range and settings that contradict each other.

    Raises:
      ConfigError: the first one found.
    """

    def need(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(message)

    m, p, t, s, d = c.model, c.process, c.training, c.sampling, c.data
    _check_kind(c, need)
    for name, value in {
        "model.embedding_dim": m.embedding_dim, "model.d_model": m.d_model, "model.layers": m.layers,
        "model.expand": m.expand, "model.state_dim": m.state_dim, "model.head_dim": m.head_dim,
        "model.groups": m.groups, "model.conv_width": m.conv_width, "model.chunk": m.chunk,
        "process.timesteps": p.timesteps, "training.steps": t.steps, "training.batch_size": t.batch_size,
        "training.accumulate": t.accumulate, "training.log_every": t.log_every,
        "training.checkpoint_every": t.checkpoint_every, "training.keep_checkpoints": t.keep_checkpoints,
        "training.max_skipped_steps": t.max_skipped_steps,
        "sampling.steps": s.steps, "sampling.num_samples": s.num_samples, "sampling.batch_size": s.batch_size,
        "data.target_length": d.target_length,
        "training.valid_batches": t.valid_batches, "model.prompt_layers": m.prompt_layers,
        "tokenizer.vocab_size": c.tokenizer.vocab_size,
    }.items():  # fmt: skip
        need(value >= 1, f"config.{name}={value}: must be at least 1")
    for name, value in {
        "optimizer.warmup_steps": c.optimizer.warmup_steps, "optimizer.weight_decay": c.optimizer.weight_decay,
        "optimizer.clip_norm": c.optimizer.clip_norm,
        "training.sample_every": t.sample_every, "training.valid_every": t.valid_every, "data.workers": d.workers,
        "model.condition_dim": m.condition_dim, "model.mlp_ratio": m.mlp_ratio, "process.mse_weight": p.mse_weight,
        "process.ce_weight": p.ce_weight, "process.prior_weight": p.prior_weight,
        "process.min_snr_gamma": p.min_snr_gamma,
    }.items():  # fmt: skip
        need(value >= 0, f"config.{name}={value}: must not be negative")
    # JAX's keys take 32 bits of a seed and drop the rest: 2**32 would draw what 0 draws
    need(0 <= c.seed < 1 << 32, f"config.seed={c.seed}: must lie between 0 and {(1 << 32) - 1}")
    need(
        m.attention_mlp_ratio >= 0 or m.attention_mlp_ratio == -1,
        f"config.model.attention_mlp_ratio={m.attention_mlp_ratio}: must not be negative, or be -1 for mlp_ratio",
    )
    for name in ("beta1", "beta2"):
        value = getattr(c.optimizer, name)
        need(0.0 <= value < 1.0, f"config.optimizer.{name}={value}: must lie in [0, 1)")
    need(c.optimizer.epsilon > 0, f"config.optimizer.epsilon={c.optimizer.epsilon}: must be positive")
    need(c.optimizer.learning_rate > 0, f"config.optimizer.learning_rate={c.optimizer.learning_rate}: must be positive")
    need(
        not (m.context == "none" and p.loss_on == "all"),
        "config.process.loss_on='all' needs the source in the sequence: context='none' leaves it out",
    )
    need(p.mse_weight + p.ce_weight > 0, "config.process.mse_weight and ce_weight are both 0: nothing would be learned")
    need(
        not (p.prediction == "epsilon" and p.schedule == "learned"),
        "config.process.schedule='learned' cannot follow an epsilon prediction, whose error in x0 is unbounded near "
        "t=1: use 'v' or 'x0'",
    )
    for name, value in {
        "process.self_condition_prob": p.self_condition_prob, "process.condition_dropout": p.condition_dropout,
        "process.anchor_prob": p.anchor_prob, "process.distillation": p.distillation,
        "model.dropout": m.dropout, "optimizer.ema_decay": c.optimizer.ema_decay, "sampling.eta": s.eta,
        "sampling.clamp_from": s.clamp_from,
    }.items():  # fmt: skip
        need(0.0 <= value <= 1.0, f"config.{name}={value}: must lie in [0, 1]")
    for name, value in {"sampling.temperature": s.temperature, "sampling.early_exit": s.early_exit}.items():
        need(value >= 0, f"config.{name}={value}: must not be negative")
    mixers = ("attention", "mamba", "mamba2")
    need(bool(m.pattern), "config.model.pattern is empty: name at least one mixer")
    for name in m.pattern:
        need(name in mixers, f"config.model.pattern holds {name!r}: choose from {', '.join(mixers)}")
    need(p.noise_scale > 0, f"config.process.noise_scale={p.noise_scale}: must be positive")
    need(
        t.batch_size % t.accumulate == 0,
        f"config.training.batch_size={t.batch_size} is not divisible by accumulate={t.accumulate}",
    )
    need(
        s.steps <= p.timesteps or p.kind != "gaussian",  # the others' time is continuous
        f"config.sampling.steps={s.steps} exceeds process.timesteps={p.timesteps}: take at most as many",
    )
    need(
        m.context != "encoder" or m.prompt_encoder != "none",
        "config.model.context='encoder' needs a prompt_encoder other than 'none'",
    )
    need(
        not m.pooled_prompt or m.prompt_encoder != "none",
        "config.model.pooled_prompt needs a prompt_encoder other than 'none'",
    )
    need(
        m.direction != "shared" or "mamba" not in m.pattern,
        "config.model.direction='shared' needs mamba2, which alone has a fused two-direction scan: "
        "use 'tied' or 'untied' with mamba",
    )
    need(
        m.context != "none" or p.anchor_prob == 0.0,
        f"config.process.anchor_prob={p.anchor_prob}: with model.context='none' nothing tells clean positions from "
        "noised ones; set 0",
    )
    need(
        p.loss_on_padding or p.anchor_prob == 0.0,
        f"config.process.anchor_prob={p.anchor_prob}: with loss_on_padding=False a row's anchors may be all that "
        "counts; set loss_on_padding=True, or anchor_prob=0",
    )
    need(
        bool(t.teachers.strip(", ")) == (p.distillation > 0),
        f"config.process.distillation={p.distillation} and config.training.teachers={t.teachers!r} go together: a "
        "share above 0, and workdirs to learn it from",
    )
    need(
        p.distillation == 0.0 or p.block_size == 0,
        f"config.process.distillation={p.distillation}: a teacher reads whole rows; set process.block_size=0",
    )
    _check_gaussian_sampling(c, need)
    need(
        m.context != "none" or m.pooled_prompt,
        "config.model.context='none' without pooled_prompt would never see the source",
    )
    need(
        # running text is masked anywhere in training, so that a masked prompt is something its models know
        s.guidance == 1.0 or p.condition_dropout > 0 or (p.kind == "masked" and d.source == "text"),
        "config.sampling.guidance other than 1 needs a model trained with process.condition_dropout > 0, or a masked "
        "one of running text; use guidance=1",
    )
    need(
        not (p.prediction == "epsilon" and p.zero_terminal_snr),
        "config.process.prediction='epsilon' is undefined at zero terminal SNR: use 'v' or 'x0'",
    )


# settings of the process that only some kinds read, and which do
READ_BY = {
    "noise_scale": ("gaussian",), "zero_terminal_snr": ("gaussian",), "mse_weight": ("gaussian",),
    "ce_weight": ("gaussian",), "prior_weight": ("gaussian",), "min_snr_gamma": ("gaussian",),
    "anchor_prob": ("gaussian",),
    "time_conditioning": ("masked", "autoregressive"), "time_range": ("masked",), "weighting": ("masked",),
    "label_smoothing": ("masked", "autoregressive"), "distillation": ("masked",),
}  # fmt: skip
GAUSSIAN_SAMPLERS = ("ddpm", "ddim", "dpmpp")
GAUSSIAN_SCHEDULES = ("cosine", "sqrt", "linear", "log_snr", "learned")
MASKED_SCHEDULES = ("log_linear", "cosine")


def _check_gaussian_sampling(c: RunConfig, need: Callable[[bool, str], None]) -> None:
    """What sampling asks of a Gaussian process, or of its being one."""
    p, s = c.process, c.sampling
    need(
        not s.anchors or (p.kind == "gaussian" and p.anchor_prob > 0.0),
        "config.sampling.anchors needs a Gaussian model trained with process.anchor_prob > 0; use anchors=False",
    )
    need(
        not (s.anchors and s.early_exit),
        f"config.sampling.early_exit={s.early_exit}: with anchors every step writes positions; set 0",
    )
    need(s.mean_temperature > 0, f"config.sampling.mean_temperature={s.mean_temperature}: must be positive")
    logits = p.kind != "gaussian" or p.prediction == "logits"
    need(
        s.mean_temperature == 1.0 or (p.kind == "gaussian" and logits),
        f"config.sampling.mean_temperature={s.mean_temperature} is for process.prediction='logits' of a Gaussian "
        "process: no other estimate of x0 is a mean over tokens; use 1",
    )
    need(
        s.end_bias == 0.0 or logits,
        f"config.sampling.end_bias={s.end_bias} is for models that predict tokens (process.prediction='logits'); use 0",
    )


def _check_kind(c: RunConfig, need: Callable[[bool, str], None]) -> None:
    """What a process asks of the data, the model and the sampler beside it."""
    m, p, s, d = c.model, c.process, c.sampling, c.data
    text = d.source == "text"
    need(
        d.source_length == 0 if text else d.source_length >= 1,
        f"config.data.source_length={d.source_length}: "
        + ("text has no source, set 0" if text else "must be at least 1"),
    )
    for name in ("valid_fraction", "test_fraction"):
        value = getattr(d.text, name)
        need(0.0 <= value < 1.0, f"config.data.text.{name}={value}: must lie in [0, 1)")
    need(d.text.valid_fraction + d.text.test_fraction < 1.0, "config.data.text: the held-out fractions leave no text")
    for name, kinds in READ_BY.items():
        value, default = getattr(p, name), getattr(type(p)(), name)
        need(
            p.kind in kinds or value == default,
            f"config.process.{name}={value!r}: process.kind={p.kind!r} does not read it; leave it at {default!r}",
        )
    need(
        not text or m.positions == "none",
        f"config.model.positions={m.positions!r}: running text may be longer than a training row; use 'none'",
    )
    need(
        not text or p.condition_dropout == 0.0,
        f"config.process.condition_dropout={p.condition_dropout}: running text has no source to leave out; set 0",
    )
    if p.kind == "gaussian":
        need(not text, "config.data.source='text' needs process.kind 'masked' or 'autoregressive'")
        schedules, samplers = GAUSSIAN_SCHEDULES, GAUSSIAN_SAMPLERS
    else:
        schedules = MASKED_SCHEDULES
        samplers = ("ancestral", "confidence", "low_confidence", "remdm")
        for name, wanted in {"self_conditioning": False, "prompt_encoder": "none", "context": "clean"}.items():
            value = getattr(m, name)
            need(value == wanted, f"config.model.{name}={value!r}: process.kind={p.kind!r} needs {wanted!r}")
        need(
            p.kind != "autoregressive" or m.direction == "causal",
            f"config.model.direction={m.direction!r}: process.kind='autoregressive' needs 'causal'",
        )
    need(
        p.schedule in schedules,
        f"config.process.schedule={p.schedule!r}: process.kind={p.kind!r} takes {', '.join(schedules)}",
    )
    need(
        s.sampler in samplers,
        f"config.sampling.sampler={s.sampler!r}: process.kind={p.kind!r} takes {', '.join(samplers)}",
    )
    low, high = p.time_range
    need(0.0 < low < high <= 1.0, f"config.process.time_range={p.time_range}: expected 0 < low < high <= 1")
    need(
        not p.time_conditioning or (p.time_range == type(p)().time_range and not p.search_time_range),
        "config.process.time_range and search_time_range: a network that is told t would not learn the times that are "
        "left out, and sampling asks for them; set process.time_conditioning=False",
    )
    need(p.block_size >= 0, f"config.process.block_size={p.block_size}: must not be negative")
    need(
        p.block_size == 0 or (p.kind == "masked" and d.target_length % p.block_size == 0),
        f"config.process.block_size={p.block_size}: needs process.kind='masked' and a divisor of "
        f"data.target_length={d.target_length}",
    )
    need(
        p.kind == "gaussian" or p.timestep_sampling != "importance",
        f"config.process.timestep_sampling='importance' is for process.kind='gaussian': {p.kind!r} takes 'stratified'",
    )
    need(
        p.kind != "masked" or p.loss_on_padding or (text and d.text.layout == "packed"),
        "config.process.loss_on_padding=False: where a masked model sees the padding behind a text, it sees the text's "
        "length, and its loss bounds no likelihood; set True",
    )
    need(
        p.loss_on == "target" or p.kind == "gaussian",
        f"config.process.loss_on={p.loss_on!r}: process.kind={p.kind!r} has its loss on the target alone",
    )
    need(
        not p.search_time_range or p.block_size > 0,
        "config.process.search_time_range is for block diffusion: set process.block_size",
    )
    need(0.0 <= p.label_smoothing < 1.0, f"config.process.label_smoothing={p.label_smoothing}: must lie in [0, 1)")
    need(s.top_k >= 0, f"config.sampling.top_k={s.top_k}: must not be negative")
    need(0.0 < s.top_p <= 1.0, f"config.sampling.top_p={s.top_p}: must lie in (0, 1]")
    need(0.0 <= s.threshold <= 1.0, f"config.sampling.threshold={s.threshold}: must lie in [0, 1]")
    need(s.score_noise >= 0.0, f"config.sampling.score_noise={s.score_noise}: must not be negative")
    need(s.remask_strength >= 0.0, f"config.sampling.remask_strength={s.remask_strength}: must not be negative")
    early, late = s.remask_window
    need(0.0 <= early < late <= 1.0, f"config.sampling.remask_window={s.remask_window}: expected 0 <= low < high <= 1")
    need(s.block_size >= 0, f"config.sampling.block_size={s.block_size}: must not be negative")
    need(
        s.cache == "none" or p.block_size == 0,
        f"config.sampling.cache={s.cache!r} is for models trained without blocks; this one has an exact cache",
    )
    need(
        not (s.reuse_logits and p.time_conditioning and p.kind == "masked"),
        "config.sampling.reuse_logits needs process.time_conditioning=False: logits change with t otherwise",
    )
