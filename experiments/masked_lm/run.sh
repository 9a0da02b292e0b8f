#!/usr/bin/env bash
# One text, one system: trains it and scores the text's validation part.  run.sh RECIPE VARIANT DATA RUNS [FLAG …]
#   experiments/masked_lm/run.sh wikitext2 h DIR runs/masked_lm
#   experiments/masked_lm/run.sh shakespeare "" FILE runs/masked_lm
# The recipe's name alone ("") is DiffuMamba. Run again with the same arguments it goes on where it stopped.
set -euo pipefail
recipe=$1 variant=$2 data=$3 runs=$4
workdir="$runs/$recipe${variant:+-$variant}"
mkdir -p "$runs"
python -m dimba_jax.train --config="configs/$recipe.py${variant:+:$variant}" --workdir="$workdir" \
    --config.data.path="$data" "${@:5}"
python -m dimba_jax.evaluate --task=likelihood --checkpoint="$workdir" --draws=16 --output="$workdir/likelihood.json"
