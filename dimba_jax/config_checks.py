"""What a configuration's values must satisfy beyond their types."""

from __future__ import annotations

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
    for name, value in {
        "model.embedding_dim": m.embedding_dim, "model.d_model": m.d_model, "model.layers": m.layers,
        "model.expand": m.expand, "model.state_dim": m.state_dim, "model.head_dim": m.head_dim,
        "model.groups": m.groups, "model.conv_width": m.conv_width, "model.chunk": m.chunk,
        "process.timesteps": p.timesteps, "training.steps": t.steps, "training.batch_size": t.batch_size,
        "training.accumulate": t.accumulate, "training.log_every": t.log_every,
        "training.checkpoint_every": t.checkpoint_every, "training.keep_checkpoints": t.keep_checkpoints,
        "sampling.steps": s.steps, "sampling.num_samples": s.num_samples, "sampling.batch_size": s.batch_size,
        "data.source_length": d.source_length, "data.target_length": d.target_length,
        "training.valid_batches": t.valid_batches, "model.prompt_layers": m.prompt_layers,
        "tokenizer.vocab_size": c.tokenizer.vocab_size,
    }.items():  # fmt: skip
        need(value >= 1, f"config.{name}={value}: must be at least 1")
    for name, value in {
        "optimizer.warmup_steps": c.optimizer.warmup_steps, "optimizer.weight_decay": c.optimizer.weight_decay,
        "optimizer.clip_norm": c.optimizer.clip_norm,
        "training.sample_every": t.sample_every, "training.valid_every": t.valid_every, "data.workers": d.workers,
        "model.mlp_ratio": m.mlp_ratio, "process.mse_weight": p.mse_weight, "process.ce_weight": p.ce_weight,
        "process.prior_weight": p.prior_weight, "process.min_snr_gamma": p.min_snr_gamma,
    }.items():  # fmt: skip
        need(value >= 0, f"config.{name}={value}: must not be negative")
    need(c.optimizer.learning_rate > 0, f"config.optimizer.learning_rate={c.optimizer.learning_rate}: must be positive")
    need(
        m.implementation not in ("gpu", "tpu"),
        f"config.model.implementation={m.implementation!r} is not built yet: use 'auto', 'xla' or 'reference'",
    )
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
        s.steps <= p.timesteps,
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
        m.context != "none" or m.pooled_prompt,
        "config.model.context='none' without pooled_prompt would never see the source",
    )
    need(
        s.guidance == 1.0 or p.condition_dropout > 0,
        "config.sampling.guidance other than 1 needs a model trained with process.condition_dropout > 0",
    )
    need(
        not (p.prediction == "epsilon" and p.zero_terminal_snr),
        "config.process.prediction='epsilon' is undefined at zero terminal SNR: use 'v' or 'x0'",
    )
