"""Scores MBR over samples of several trainings of a system, drawn already, a line of results.json as run.py's.

    python experiments/qqp/pool.py --work=runs --system=DiffuMamba-H --seeds=0,1 --label="DiffuMamba-H, two networks"

Of the samples that `run.py --mbr=10` kept in WORK/SYSTEM-SEED one of each network is taken in turn, as many as --mbr
says: of two networks five each. No model is loaded. Parameters and minutes are the sums of those of the networks, whose
lines must be in results.json; network calls are those of one sample times the samples.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run import SYSTEMS, workdir_of
from seq2seq import Line, keep, lines_of, numbers, samples_file
from seq2seq_tables import read

from dimba_jax.data.examples import DataError
from dimba_jax.evals.records import pooled, read_records
from dimba_jax.evals.report import make_report, score_rows

SAME = ("objective", "backbone", "device", "train_steps", "sampling", "steps")  # of the networks' lines
SUMS = ("params", "train_minutes")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--work", type=Path, default=Path("runs"))
    flags.add_argument("--system", choices=SYSTEMS, required=True)
    flags.add_argument("--seeds", type=numbers, required=True, help="of training, as in 0,1")
    flags.add_argument("--label", required=True, help="the lines' name")
    flags.add_argument("--split", default="test", choices=["valid", "test"])
    flags.add_argument("--mbr", type=int, default=10, help="samples to choose among, of all networks together")
    flags.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    options = flags.parse_args()
    if options.label in (*SYSTEMS, "copy", ""):
        flags.error(f"--label={options.label}: expected a name that no system's lines have")
    if len(set(options.seeds)) != len(options.seeds) or len(options.seeds) < 2:
        flags.error("--seeds: expected two or more different ones")
    if options.mbr < len(options.seeds):
        flags.error(f"--mbr={options.mbr}: expected a sample of each network at least")
    paths = [
        str(samples_file(workdir_of(options.system, options.work, seed), options.split, options.mbr))
        for seed in options.seeds
    ]
    try:
        records = pooled([read_records(path) for path in paths], paths)
    except DataError as error:
        flags.error(f"{error}; run.py --mbr={options.mbr} keeps a network's samples")
    common = joined([network(options, seed) for seed in options.seeds])
    common |= {"system": options.label, "weights": options.system, "seed": "+".join(map(str, options.seeds))}
    found = lines_of(make_report(score_rows(records, [options.mbr]), options.split), [options.mbr], common, None)
    for line in found:
        print({k: line[k] for k in ("system", "subset", "mbr", "network_calls", "bleu", "ibleu", "bleu_source")})
    keep(options.results, found)


def network(options: argparse.Namespace, seed: int) -> Line:
    """The line of one of the networks.

    Raises:
      SystemExit: there is none.
    """
    wanted = {
        "system": options.system, "seed": seed, "split": options.split, "subset": "all", "mbr": options.mbr,
        "curve": False,
    }  # fmt: skip
    for line in read(options.results):
        if wanted.items() <= line.items():
            return line
    raise SystemExit(f"{options.results} has no line of {wanted}: run.py --mbr={options.mbr} makes it")


def joined(lines: list[Line]) -> Line:
    """What their pool's line says of them.

    Raises:
      SystemExit: they were not trained or sampled alike.
    """
    for name in SAME:
        if any(line[name] != lines[0][name] for line in lines):
            raise SystemExit(f"{name}: {' and '.join(str(line[name]) for line in lines)}: pool networks that are alike")
    sums = {name: round(sum(line[name] for line in lines), 2) for name in SUMS}
    return {name: lines[0][name] for name in (*SAME, "split", "curve")} | sums


if __name__ == "__main__":
    main()
