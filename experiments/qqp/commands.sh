#!/bin/sh
# The commands behind results.json and differences.jsonl, in an order that works.
#
#   sh experiments/qqp/commands.sh DIR
#
# DIR holds DiffuSeq's train*.jsonl, valid.jsonl and test.jsonl. Trainings and samples are kept in runs/ of the working
# directory: four hours of training on one H200, and the scores. What is trained already is not trained again. PYTHON
# is the Python to use. Variables without quotes hold several flags.
set -e
DATA=$1
[ -d "$DATA" ] || { echo "$0 DIR: name the folder that holds train.jsonl, valid.jsonl and test.jsonl" >&2; exit 2; }
run() { "${PYTHON:-python}" experiments/qqp/run.py --data="$DATA" --work=runs "$@"; }
choose() { "${PYTHON:-python}" experiments/qqp/mbr.py --work=runs "$@"; }
compare() { "${PYTHON:-python}" experiments/qqp/differences.py --work=runs "$@"; }

# Gaussian systems
run --system=DIMBA --mbr=1 --batch_size=1250 --nospeed
run --system=DIMBA --score_only --mbr=10 --batch_size=1250 --config.sampling.eta=1 --config.sampling.temperature=1
run --system=DIMBA --calls=2,5,10,20,50,100
run --system=MambaDiff --mbr=1 --batch_size=1250 --nospeed
run --system=MambaDiff --seed=1 --mbr=1 --batch_size=1250
run --system=DiffuSeq --mbr=1 --batch_size=1250 --nospeed
for system in "MambaDiff --seed=1" DiffuSeq; do
    run --system=$system --score_only --mbr=10 --batch_size=1250 --config.sampling.eta=1 \
        --config.sampling.temperature=1 --config.sampling.mean_temperature=1
    run --system=$system --batch_size=1250 --calls=2,5,10,20,50,100
done
run --system=MambaDiff --seed=1 --batch_size=1250 --nospeed --calls=2,5,10,20,50,100,200,500,2000 \
    --label="MambaDiff, DDIM" --config.sampling.anchors=False --config.sampling.padding_apart=False \
    --config.sampling.mean_temperature=1

# Masked systems
NOISE="--config.sampling.score_noise=1 --config.sampling.end_bias=-1" # of MBR
run --system=DiffuMamba --mbr=1 --nospeed
run --system=DiffuMamba --score_only --mbr=10 --nospeed --config.sampling.score=probability $NOISE
both() { # SYSTEM SEED, and flags of training
    run --mbr=1 --nospeed --system="$@"
    run --system="$1" "$2" --score_only --mbr=10 --nospeed $NOISE
}
for seed in 0 1 2 3 4; do both DiffuMamba-H --seed=$seed; done
for seed in 5 6; do run --system=DiffuMamba-H --seed=$seed --mbr=1 --nospeed; done
for seed in 0 1 2 3 4 5 6 7 8; do both DiffuTran --seed=$seed; done
both "DiffuTran equal time" --seed=0
run --system=DiffuMamba-H --calls=2
run --system=DiffuMamba-H --seed=1 --calls=2,4,8,16,32
run --system=DiffuTran --calls=2,4,8,16,32

# Those that learn from two
both "DiffuMamba-H distilled" --seed=0 --teachers=3,4
both "DiffuMamba-H distilled" --seed=1 --teachers=3,4
both "DiffuMamba-H distilled" --seed=2 --teachers=5,6
both "DiffuTran distilled" --seed=0 --teachers=3,4
both "DiffuTran distilled" --seed=1 --teachers=5,6
both "DiffuTran distilled" --seed=2 --teachers=7,8
run --system="DiffuMamba-H distilled" --seed=1 --calls=2,4,8,16,32
run --system="DiffuTran distilled" --seed=0 --calls=2,4,8,16,32

# Two that write together; MBR by iBLEU; samples of two
for system in DiffuMamba-H DiffuTran; do
    of="--system=$system --seed=3 --with_seeds=4 --score_only --nospeed --config.sampling.steps=8"
    run $of --label="$system, mean of two" --mbr=1
    run $of --label="$system, mean of two" --mbr=10 $NOISE
    for seed in 3 4; do choose --system=$system --seeds=$seed --gain=ibleu; done
    choose --system=$system --seeds=3,4 --label="$system, samples of two"
    choose --system=$system --seeds=3,4 --label="$system, samples of two" --gain=ibleu
done
run --system=DiffuMamba-H --seed=3 --with_seeds=4 --label="DiffuMamba-H, mean of two" --calls=1,2,4,8,16
for seeds in 5,6 7,8; do
    choose --system=DiffuTran --seeds=$seeds --label="DiffuTran, samples of two"
    choose --system=DiffuTran --seeds=$seeds --label="DiffuTran, samples of two" --gain=ibleu
done
for system in "DiffuMamba-H distilled" "DiffuTran distilled"; do
    for seed in 0 1 2; do choose --system="$system" --seeds=$seed --gain=ibleu; done
done
choose --system="DiffuTran equal time" --seeds=0 --gain=ibleu

# 20,000 steps, and the autoregressive twins
run --system="DiffuMamba long" --mbr=1
run --system="DiffuMamba long" --score_only --mbr=10 --config.sampling.score_noise=1
run --system="DiffuMamba long" --calls=2,4,8,16,32
APART="--config.sampling.padding_apart=False --config.sampling.score=probability --config.sampling.end_bias=-2"
for system in "DiffuTran long" "DiffuMamba-H long"; do
    run --system="$system" --split=valid --mbr=1 --nospeed --results=valid.json
    run --system="$system" --split=valid --score_only --mbr=1 --nospeed $APART
done
run --system="DiffuTran long" --score_only --mbr=10 $APART --config.sampling.score_noise=1
run --system="AR Transformer" --mbr=1
run --system="AR Transformer" --score_only --mbr=10 --config.sampling.temperature=.3
for seed in 0 1; do run --system="AR Mamba" --seed=$seed --mbr=1 --nospeed; done
run --system="AR Mamba" --seed=1 --score_only --mbr=10 --nospeed --config.sampling.temperature=.5

# Samples of the validation split, and systems compared row by row
valid() { # SYSTEM SEEDS
    for seed in $2; do
        run --system="$1" --seed=$seed --split=valid --score_only --nospeed --results=valid.json --mbr=1
        run --system="$1" --seed=$seed --split=valid --score_only --nospeed --results=valid.json --mbr=10 $NOISE
    done
}
valid DiffuMamba-H "3 4"
valid DiffuTran "3 4 5 6"
valid "DiffuMamba-H distilled" "0 1 2"
valid "DiffuTran distilled" "0 1 2"
valid "DiffuTran equal time" 0
run --system="AR Mamba" --seed=1 --split=valid --score_only --nospeed --results=valid.json --mbr=1
run --system="AR Mamba" --seed=1 --split=valid --score_only --nospeed --results=valid.json --mbr=10 \
    --config.sampling.temperature=.5
for which in "--mbr=1" "--mbr=10" "--split=valid --mbr=1" "--split=valid --mbr=10"; do
    compare $which --system="DiffuMamba-H distilled" --seeds=0,1 --than=DiffuMamba-H --than_seeds=3,4
    compare $which --system="DiffuTran distilled" --seeds=0 --than=DiffuTran --than_seeds=3,4
    compare $which --system="DiffuTran distilled" --seeds=1 --than=DiffuTran --than_seeds=5,6
    compare $which --system="DiffuMamba-H distilled" --seeds=0,1,2 --than="DiffuTran distilled" \
        --than_seeds=0,1,2
    compare $which --system="DiffuMamba-H distilled" --seeds=0,1,2 --than="DiffuTran equal time" --than_seeds=0
done
compare --mbr=1 --system="DiffuMamba-H distilled" --seeds=2 --than=DiffuMamba-H --than_seeds=5,6
for which in "--mbr=1" "--mbr=10"; do
    compare $which --system="DiffuTran distilled" --seeds=2 --than=DiffuTran --than_seeds=7,8
    compare $which --system="DiffuTran equal time" --seeds=0 --than=DiffuTran --than_seeds=3,4,5,6,7,8
    compare $which --split=valid --system="DiffuTran equal time" --seeds=0 --than=DiffuTran --than_seeds=3,4,5,6
done
compare --mbr=1 --system=DiffuMamba-H --seeds=3,4,5,6 --than=DiffuTran --than_seeds=3,4,5,6
compare --mbr=1 --system=DiffuMamba-H --seeds=3,4,5,6 --than="DiffuTran equal time" --than_seeds=0
for which in "--mbr=10" "--split=valid --mbr=1" "--split=valid --mbr=10"; do
    compare $which --system=DiffuMamba-H --seeds=3,4 --than=DiffuTran --than_seeds=3,4
    compare $which --system=DiffuMamba-H --seeds=3,4 --than="DiffuTran equal time" --than_seeds=0
done
