"""The copy baseline on Quora's test questions."""

import json
from pathlib import Path

import pytest

from dimba_jax import evaluate
from dimba_jax.evals.bleu import Ngrams, sentence_bleu
from dimba_jax.evals.metrics import distinct, rouge_l

RECIPE = Path(__file__).parents[2] / "configs" / "qqp.py"
pytestmark = pytest.mark.realdata


def test_scores_of_the_command(tmp_path, real_data):
    output, path = tmp_path / "copy.json", f"--config.data.path={real_data / 'qqp'}"
    arguments = ["--system=copy", f"--config={RECIPE}", path, "--split=test", f"--output={output}"]
    assert evaluate.main(["evaluate", *arguments]) == 0
    report = json.loads(output.read_text())
    copy, unseen = report["systems"]["copy"], report["unseen"]["copy"]
    assert (report["rows"], report["unseen_rows"]) == (2500, 829)
    for scores, expected in (
        (copy, {"bleu": 0.2619, "rouge_l": 0.5801, "dist1": 0.973, "bleu_source": 1.0, "ibleu": 0.0095}),
        (unseen, {"bleu": 0.3450, "rouge_l": 0.6559, "dist1": 0.968, "bleu_source": 1.0}),
    ):
        for metric, value in expected.items():
            assert scores[metric] == pytest.approx(value, abs=1e-3), metric
    assert copy["length"] == pytest.approx(11.2, abs=0.05)
    assert unseen["length"] == pytest.approx(11.0, abs=0.05)


def test_scores_of_raw_words(real_data):
    rows = [json.loads(line) for line in (real_data / "qqp" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [(Ngrams.of(row["src"].split()), Ngrams.of(row["trg"].split())) for row in rows]

    def mean(values):
        return sum(values) / len(values)

    assert mean([sentence_bleu(source, [target]) for source, target in pairs]) == pytest.approx(0.2144, abs=1e-3)
    assert mean([rouge_l(row["src"], [row["trg"]]) for row in rows]) == pytest.approx(0.5800, abs=1e-3)
    assert mean([distinct([source], 1) for source, _ in pairs]) == pytest.approx(0.981, abs=1e-3)
    assert mean([source.length for source, _ in pairs]) == pytest.approx(9.7, abs=0.05)
