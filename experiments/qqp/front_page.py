"""The table of the project's front page: of each system what one training costs and what it scores on the test rows."""

from __future__ import annotations

import re
from pathlib import Path

from seq2seq_tables import Line, cell

README = Path(__file__).resolve().parents[2] / "README.md"
NAME, SCRIPT = "QQP", "experiments/qqp/report.py"
SYSTEMS = {
    "MambaDiff": "MambaDiff (`mambadiff_qqp`), Gaussian",
    "DiffuSeq": "Transformer twin (`diffuseq_qqp`), Gaussian",
    "DIMBA": "DIMBA (`qqp`), Gaussian",
    "DiffuMamba-H distilled": "DiffuMamba-H distilled: `qqp_masked:h` that learns from two others, too",
    "DiffuMamba-H": "DiffuMamba-H (`qqp_masked:h`), masked, Mamba-2 and attention",
    "DiffuTran distilled": "DiffuTran distilled: `qqp_masked:tran` that learns from two others, too",
    "DiffuTran": "DiffuTran (`qqp_masked:tran`), masked, Transformer",
    "DiffuTran equal time": "DiffuTran, 10,000 steps, the time of the hybrid's 8,000",
    "DiffuMamba": "DiffuMamba (`qqp_masked`), masked, Mamba-2",
    "DiffuMamba long": "DiffuMamba, n 64, 20,000 steps (`qqp_masked:long`)",
    "DiffuTran long": "DiffuTran, 20,000 steps (`qqp_masked:long-tran`)",
    "AR Transformer": "autoregressive Transformer (`qqp_masked:ar`)",
    "AR Mamba": "autoregressive Mamba-2 (`qqp_masked:ar-mamba`)",
}
FEW_CALLS = {
    "DiffuMamba-H distilled": 4,
    "DiffuTran distilled": 4,
    "DiffuMamba long": 4,
}  # with a line for so many calls, too
PUBLISHED = "| *DiffuSeq as published* | *91M* | – | *two days on four A100* | *2,000* | *.188* | – | *.241* | – | – |"


def table(lines: list[Line]) -> str:
    """A line for each of SYSTEMS on all test rows, MBR over ten by BLEU, and BLEU on the unseen rows.

    Then what is published, and copying.
    """
    test = [line for line in lines if line["split"] == "test" and "gain" not in line]
    heads = "system | parameters | seeds | training, in all | calls | BLEU | iBLEU | BLEU, MBR 10 | iBLEU, MBR 10"
    rows = [f"| {heads} | BLEU, unseen |", "|" + "---|" * 10]
    for system, called in SYSTEMS.items():
        of_system = [line for line in test if line["system"] == system]
        one, ten = ([line for line in of_system if line["mbr"] == k and not line.get("curve")] for k in (1, 10))
        trained = _all(one) or _all(ten)
        _there(trained, f"test line of {system}")
        rows.append(
            f"| {called} | {trained[0]['params'] / 1e6:.0f}M | {_seeds(_all(one), _all(ten))} | {_minutes(trained)} "
            f"| {_calls(trained[0])} | {_figures(one, ten)} |"
        )
        if system in FEW_CALLS:
            few = [line for line in of_system if line.get("curve") and line["steps"] == FEW_CALLS[system]]
            _there(few, f"line of {system} with {FEW_CALLS[system]} steps")
            rows.append(f"| the same, fewer calls | | {len(_all(few))} | | {_calls(few[0])} | {_figures(few, [])} |")
    copy = [line for line in test if line["system"] == "copy"]
    _there(copy, "test line of copying")
    rows += [PUBLISHED, f"| copying the source | | | none | 0 | {_figures(copy, [])} |"]
    return "\n".join(rows)


def _there(lines: list[Line], what: str) -> None:
    if not lines:
        raise SystemExit(f"results.json has no {what}, which the front page shows: run.py makes it")


def _all(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["subset"] == "all"]


def _seeds(one: list[Line], ten: list[Line]) -> str:
    if one and ten and len(one) != len(ten):
        return f"{len(one)} ({len(ten)} with MBR)"
    return str(len(one) or len(ten))


def _calls(line: Line) -> str:
    """Network calls of a single sample."""
    return f"{line['network_calls'] / line['mbr']:.0f}"


def _minutes(lines: list[Line]) -> str:
    """Of the quickest and the slowest seed."""
    found = sorted(line["train_minutes"] for line in lines)
    ends = dict.fromkeys(f"{minutes:.1f}" for minutes in (found[0], found[-1]))
    theirs = ", theirs counted" if "teachers" in lines[0] else ""
    return f"{' to '.join(ends)} minutes{theirs}"


def _figures(one: list[Line], ten: list[Line]) -> str:
    """BLEU and iBLEU of one sample and with MBR, then BLEU of one on the unseen rows."""
    unseen = [line for line in one if line["subset"] == "unseen"]
    asked = [(_all(group), name) for group in (one, ten) for name in ("bleu", "ibleu")] + [(unseen, "bleu")]
    # without the zero before the point
    return " | ".join(re.sub(r"\b0\.", ".", cell(lines, name, ".3f")) if lines else "–" for lines, name in asked)
