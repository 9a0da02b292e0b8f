"""Writes the tables of README.md from results.json, and gathers the reports that run.sh wrote.

python experiments/qqp_masked/report.py
python experiments/qqp_masked/report.py --run=runs/masked    # takes the test figures of run.sh into results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
FIGURES = ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "length", "network_calls")
DIGITS = {"length": ".1f", "network_calls": ".1f"}


def gather(run: Path) -> list[dict]:
    """The rows of every report in a run's folder, on all test rows and on the unseen ones."""
    if not (run / "run.json").exists():
        raise SystemExit(f"{run} has no run.json: run.sh trains and scores into it")
    process = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]["process"]
    training = process["weighting"] + (", smoothed" if process["label_smoothing"] else "")
    rows = []
    for path in sorted(run.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "systems" not in report or "sampling" not in report["metadata"]:
            continue
        settings = {key: report["metadata"]["sampling"][key] for key in ("sampler", "score", "steps", "threshold")}
        if report["split"] != "test":
            continue
        for split, systems in (("test", report["systems"]), ("test, unseen", report["unseen"])):
            rows.append({"training": training, "split": split} | settings | {f: systems["model"][f] for f in FIGURES})
            copy = {"training": None, "split": split, "sampler": "copy the source"}
            copy |= {f: systems["copy"][f] for f in FIGURES}
            if copy not in rows:
                rows.append(copy)
    if not rows:
        raise SystemExit(f"{run} has no report of the test split: run.sh writes them")
    return rows


def table(rows: list[dict]) -> str:
    """The rows of one split as Markdown."""
    lines = [
        "| training | decoding | BLEU | ROUGE-L | iBLEU | BLEU-src | dist-1 | length | calls |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=_place):
        decoding = [row["sampler"]]
        if row["training"] is not None:
            if row["sampler"] == "confidence":
                decoding.append(row["score"])
            decoding.append(f"{row['steps']} steps")
            decoding += [f"{name} {row[name]:g}" for name in ("temperature", "threshold") if row.get(name)]
        cells = [format(row[name], DIGITS.get(name, ".4f")) for name in FIGURES]
        lines.append(f"| {row['training'] or '–'} | {', '.join(decoding)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(row: dict) -> tuple:
    """By training and how tokens are chosen, then by steps; copying last."""
    chosen = [row.get(name) or 0 for name in ("threshold", "temperature", "steps")]
    return row["training"] is None, row["training"] or "", row["sampler"], row.get("score") or "", *chosen


def tables() -> dict[str, str]:
    """A table for each split of the lines of results.json, which names its place."""
    rows = result_files.read(RESULTS)
    return {split: table([row for row in rows if row["split"] == split]) for split in {row["split"]: 0 for row in rows}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="workdir that run.sh wrote into")
    run = parser.parse_args().run
    if run is not None:
        rows = result_files.read(RESULTS)
        rows = [row for row in rows if not row["split"].startswith("test")] + gather(run)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    documents.put(tables(), documents.of(HERE))


if __name__ == "__main__":
    main()
