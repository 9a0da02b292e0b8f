#!/usr/bin/env bash
# Trains configs/qqp_masked.py:long as this study did, for fewer steps, and scores the test split for every number
# of calls.  run.sh DIR RUN [FLAG …]      DIR holds train*.jsonl, valid.jsonl and test.jsonl.
set -euo pipefail
data=$1 run=$2
python -m dimba_jax.train --config=configs/qqp_masked.py:long --workdir="$run" --config.data.path="$data" \
    --config.training.steps=7500 --config.model.dropout=0.1 --config.sampling.score=margin --config.sampling.end_bias=0 "${@:3}"
score() { python -m dimba_jax.evaluate --checkpoint="$run" --split=test --batch_size=2500 --output="$run/$1.json" "${@:2}"; }
for steps in 16 8 4 32; do score "margin_$steps" --steps=$steps; done
score probability_16 --steps=16 --score=probability
score ancestral_16 --steps=16 --sampler=ancestral
score threshold_9 --steps=32 --threshold=0.9
