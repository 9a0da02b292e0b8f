"""Trains the systems of this study and scores them on all test rows, a line of results.json each.

    python experiments/qqp/run.py --data=DIR --work=runs --system=DiffuMamba
    python experiments/qqp/run.py --data=DIR --work=runs --system=DIMBA --seed=1 --minutes=9   # goes on when run again
    python experiments/qqp/run.py --data=DIR --work=runs --system=DiffuMamba --calls=2,4,8,16   # after training
    python experiments/qqp/run.py --data=DIR --work=runs --system="DiffuMamba-H distilled" --teachers=3,4
    python experiments/qqp/run.py --data=DIR --work=runs --system=DiffuMamba-H --seed=3 --with_seeds=4 --score_only \\
        --label="DiffuMamba-H, mean of two"   # a step is a network call of each

DIR holds DiffuSeq's train*.jsonl, valid.jsonl and test.jsonl. A system is a recipe of configs/, whose sampling settings
were chosen on the validation split; "DiffuTran equal time" has 10,000 steps, which take an H200 as long as
DiffuMamba-H's 8,000, start and compilation apart. Training is `python -m dimba_jax.train` in WORK/SYSTEM-SEED; after
--minutes it is told to save and end, and the exit status is 3 until it is done. Minutes of training are those of its
processes from start to end, compilation, validation and checkpoints included, over all starts (one that finds nothing
to do, too), and those of the networks it learned from.
All samples of a row are kept in the workdir (mbr.py and `evaluate --samples` read them), but for those of --calls,
--label or --limit.
--calls scores one sample for each number of sampling steps, --score_only what is trained already; with --label their
lines are those of other sampling settings and do not take the place of the recipe's. Flags as
--config.training.steps=100 are handed on to training; those of --config.sampling hold for these scores, too. Sentences
a second are those of one sample each in a second round, whose programs are compiled; --nospeed leaves them out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seq2seq import System, numbers, parse, parser, score, train
from trainings import WALL, teachers

from dimba_jax.checkpoint import Checkpoints
from dimba_jax.errors import UserError

SYSTEMS = {
    "MambaDiff": System("mambadiff_qqp", "gaussian", "Mamba"),
    "DIMBA": System("qqp", "gaussian", "Mamba-2"),
    "DiffuSeq": System("diffuseq_qqp", "gaussian", "Transformer"),
    "DiffuMamba": System("qqp_masked", "masked", "Mamba-2"),
    "DiffuMamba-H": System("qqp_masked:h", "masked", "Mamba-2 and attention"),
    "DiffuMamba-H distilled": System("qqp_masked:h", "masked", "Mamba-2 and attention"),
    "DiffuTran": System("qqp_masked:tran", "masked", "Transformer"),
    "DiffuTran distilled": System("qqp_masked:tran", "masked", "Transformer"),
    "DiffuTran equal time": System("qqp_masked:tran", "masked", "Transformer", ("--config.training.steps=10000",)),
    "DiffuMamba long": System("qqp_masked:long", "masked", "Mamba-2"),
    "DiffuMamba-H long": System("qqp_masked:long-h", "masked", "Mamba-2 and attention"),
    "DiffuTran long": System("qqp_masked:long-tran", "masked", "Transformer"),
    "AR Transformer": System("qqp_masked:ar", "autoregressive", "Transformer"),
    "AR Mamba": System("qqp_masked:ar-mamba", "autoregressive", "Mamba-2"),
}

TAUGHT_BY = {"DiffuMamba-H distilled": "DiffuMamba-H", "DiffuTran distilled": "DiffuTran"}
SHARE = 0.5  # of the loss that is the teachers'


def workdir_of(system: str, work: Path, seed: int) -> Path:
    return work / f"{system.replace(' ', '_')}-{seed}"


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--system", choices=SYSTEMS, required=True)
    flags.add_argument("--with_seeds", type=numbers, default=[], help="of the networks that write with this one's")
    flags.add_argument(
        "--teachers", type=numbers, default=[], help="seeds of the networks that a distilled one learns from"
    )
    options = parse(flags, Path(__file__).parent / "results.json", SYSTEMS)
    check(flags, options)
    system = SYSTEMS[options.system]
    workdir = workdir_of(options.system, options.work, options.seed)
    taught = []
    if options.teachers:
        of = [workdir_of(TAUGHT_BY[options.system], options.work, seed).resolve() for seed in sorted(options.teachers)]
        taught = [f"--config.training.teachers={','.join(map(str, of))}", f"--config.process.distillation={SHARE}"]
        if (workdir / "run.json").exists() and {path.name for path in teachers(workdir)} != {path.name for path in of}:
            raise SystemExit(f"{workdir} holds a student of other teachers: take another --seed")
        for path in of:
            check_finished(path)
    train(system, workdir, options, taught)
    names = {"system": options.system}
    seeds = sorted([options.seed, *options.with_seeds])
    if options.with_seeds:
        options.seed = seeds[0]  # samples of the same networks are the same, whichever is named first
        names |= {"seed": "+".join(map(str, seeds)), "together": "distributions"}
    first, *others = [workdir_of(options.system, options.work, seed) for seed in seeds]
    try:
        score(system, first, options, names, others=others)
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None


def check(flags: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    if options.with_seeds and not options.label:
        flags.error("--with_seeds scores several networks: add --label=NAME")
    for name, seeds in (("with_seeds", [options.seed, *options.with_seeds]), ("teachers", options.teachers)):
        if len(set(seeds)) < len(seeds):
            flags.error(f"--{name}: a network is named twice; name each once")
    learns = options.system in TAUGHT_BY and not (options.score_only or options.calls)
    if bool(options.teachers) != learns:
        flags.error(f"--teachers is for training {' and '.join(TAUGHT_BY)}, which need it")
    for name in ("--config.training.teachers", "--config.process.distillation"):
        if any(setting.partition("=")[0] == name for setting in options.settings):
            flags.error(f"{name} would be another system under this one's name: take a distilled one, and --teachers")


def check_finished(teacher: Path) -> None:
    """Raises SystemExit if a teacher is not trained to the end, or its minutes are not known."""
    try:
        with Checkpoints(teacher) as checkpoints:
            step, steps = checkpoints.resolve(None, ("config",)), checkpoints.read_config()["training"]["steps"]
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    if step < steps:
        raise SystemExit(f"{teacher} is at step {step} of {steps}: train it to the end")
    if not (teacher / WALL).exists():
        raise SystemExit(f"{teacher} has no {WALL}, which run.py leaves: train it with run.py")


if __name__ == "__main__":
    main()
