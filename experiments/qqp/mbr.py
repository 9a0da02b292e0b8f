"""Scores other choices among the samples that run.py kept, a line of results.json each; no model is loaded.

    python experiments/qqp/mbr.py --work=runs --system=DiffuMamba-H --seeds=0 --gain=ibleu
    python experiments/qqp/mbr.py --work=runs --system=DiffuMamba-H --seeds=0,1 --label="DiffuMamba-H, two networks"

Each of the trainings has been scored before, by `run.py --score_only --mbr=10` with the flags of its sampling, which
leaves ten samples of each row in WORK/SYSTEM-SEED and a line in results.json; samples that do not have that line's BLEU
are refused. --gain=ibleu takes the sample whose iBLEU against the others is the greatest, in place of BLEU. Of several
trainings one sample of each is taken in turn, as many as --mbr says: of two networks five each. Parameters and minutes
of training are then the sums of those of the networks (what several learned from counts once); network calls are those
of one sample times the samples.
Pools of one label share no network: they are seeds of one figure. After run.py has drawn samples anew, lines of the old
ones stay until this is run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kept_samples import Kept
from result_files import read
from run import SYSTEMS, workdir_of
from seq2seq import numbers
from seq2seq_lines import Line, check_label, keep, lines_of
from trainings import minutes_of

from dimba_jax.data.examples import DataError
from dimba_jax.evals.records import pooled
from dimba_jax.evals.report import make_report, score_rows
from dimba_jax.sampling.mbr import GAINS

SAME = ("objective", "backbone", "device", "train_steps", "sampling", "steps", "split", "curve")  # of all networks


def main() -> None:
    options = parse()
    several = {"weights": options.system, "seed": "+".join(map(str, options.seeds)), "together": "samples"}
    check_label(options.results, options.label, several)
    drawn, lines = [], []
    for seed in options.seeds:
        kept = Kept(options.work, options.system, seed, options.split, options.mbr)
        drawn.append(kept.samples())
        line = kept.line(options.results)
        if line is None:
            what = f"{options.system}, seed {seed}, {options.split} split, MBR over {options.mbr}"
            raise SystemExit(f"{options.results} has no line of {what}; {kept.again()}")
        kept.check(line, score_rows(drawn[-1], [options.mbr]), options.results)
        lines.append(line)
    common = joined(lines)
    if options.label:
        check_pools(options, common)
        common |= {"system": options.label} | several
        common["train_minutes"] = minutes_of([workdir_of(options.system, options.work, seed) for seed in options.seeds])
    try:
        records = pooled(drawn, [f"the file of seed {seed}" for seed in options.seeds], options.mbr)
    except DataError as error:
        raise SystemExit(str(error)) from None
    report = make_report(score_rows(records, [options.mbr], gain=options.gain), options.split)
    found = [line for line in lines_of(report, [options.mbr], common, None, options.gain) if line["system"] != "copy"]
    for line in found:
        shown = ("system", "subset", "mbr", "gain", "network_calls", "bleu", "ibleu", "bleu_source")
        print(json.dumps({name: line[name] for name in shown if name in line}))
    keep(options.results, found)


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--work", type=Path, default=Path("runs"))
    flags.add_argument("--system", choices=SYSTEMS, required=True)
    flags.add_argument("--seeds", type=numbers, required=True, help="of the trainings, as in 0,1")
    flags.add_argument("--gain", choices=GAINS, default="bleu", help="what the choice is by")
    flags.add_argument("--label", help="the name of the lines of several trainings")
    flags.add_argument("--split", default="test", choices=["valid", "test"])
    flags.add_argument("--mbr", type=int, default=10, help="samples to choose among, of all networks together")
    flags.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    options = flags.parse_args()
    several = len(options.seeds) > 1
    if len(set(options.seeds)) != len(options.seeds):
        flags.error("--seeds: one is named twice; name each once")
    options.seeds.sort()
    if several and not options.label:
        flags.error("several seeds need a name of their own: add --label=NAME")
    if several and options.label in (*SYSTEMS, "copy"):
        flags.error(f"--label={options.label}: several seeds need a name that no system's lines have")
    if not several and options.label:
        flags.error("--label is for several seeds")
    if not several and options.gain == "bleu":
        flags.error("one seed's choice by BLEU is run.py's line: add --gain=ibleu, or another seed")
    if options.mbr < max(2, len(options.seeds)):
        flags.error(f"--mbr={options.mbr}: expected a sample of each network, two at least")
    return options


def joined(lines: list[Line]) -> Line:
    """What the line of their pool says of the networks.

    Raises:
      SystemExit: they were not trained or sampled alike.
    """
    for name in (*SAME, "params"):
        if any(line[name] != lines[0][name] for line in lines):
            found = " and ".join(str(line[name]) for line in lines)
            raise SystemExit(f"{name} is {found}: pool networks that were trained and sampled alike")
    kept = {name: lines[0][name] for name in (*SAME, "system", "seed", "train_minutes")}
    taught_by = sorted({name for line in lines for name in line.get("teachers", [])})
    return kept | {"params": sum(line["params"] for line in lines)} | ({"teachers": taught_by} if taught_by else {})


def check_pools(options: argparse.Namespace, common: Line) -> None:
    """Beside other pools of the label this one is a seed of the same figure.

    Raises:
      SystemExit: one of them was trained or sampled in another way.
    """
    for line in read(options.results):
        if line["system"] != options.label or line["mbr"] != options.mbr or line["split"] != options.split:
            continue
        for name in SAME:
            if line[name] != common[name]:
                raise SystemExit(f"--label={options.label} has a pool with {name} {line[name]}: take another label")


if __name__ == "__main__":
    main()
