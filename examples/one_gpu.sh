#!/bin/bash
# Continued pre-training of the 7B model on ONE GPU of 141 GB (H200): bf16 parameters with the 16 bits that they lack.
#
#   BASE=mistral-7b-v0.1 TEXT=ru.jsonl.zst HELD=held.jsonl.zst bash examples/one_gpu.sh
#
# Stopped at any point, it goes on when run again. DRY_RUN=1 only prints and checks the commands, and estimates the cost.
# It has not been run to its end: by `vikhr-fast plan` the paper's 11 billion tokens take 354 GPU-hours on an H200. MAX_STEPS
# limits it; a step is 3,072 sequences of 1,024 tokens.
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

BASE=${BASE:-inputs/mistral-7b-v0.1}
TEXT=${TEXT:-inputs/ru.jsonl.zst}
ENGLISH=${ENGLISH:-inputs/en.jsonl.zst}
HELD=${HELD:-inputs/held-ru.jsonl.zst}
MAX_STEPS=${MAX_STEPS:-100}
OUT=${OUT:-runs/one-gpu}

# What fits, and how long it takes.
vikhr-fast plan --config vikhr-7b-1gpu --gpu h200 --gpus 1

# Vocabulary, adapted model, and text as it is in token shards.
stage "$OUT/tokenizer" vikhr-fast tokenizer train --input "$TEXT" "$ENGLISH" --vocab-size 40000
stage "$OUT/adapted" vikhr-fast adapt --base "$BASE" --tokenizer "$OUT/tokenizer"
stage "$OUT/ru" vikhr-fast corpus shard --input "$TEXT" --tokenizer "$OUT/tokenizer"
stage "$OUT/en" vikhr-fast corpus shard --input "$ENGLISH" --tokenizer "$OUT/tokenizer"
stage "$OUT/held" vikhr-fast corpus shard --input "$HELD" --tokenizer "$OUT/tokenizer"

# The fastest tiles of attention on this GPU, kept in ~/.cache/vikhr_kernels.
if [ -z "${DRY_RUN:-}" ]; then python -m vikhr_kernels.tune; fi

# Training; memory, MFU and tokens a second of every step are in metrics.jsonl, the curves on the page.
run vikhr-fast train --config vikhr-7b-1gpu --model "$OUT/adapted" --output "$OUT/run" \
    --data.train ru "$OUT/ru" en "$OUT/en" --data.validation ru "$OUT/held" --schedule.max-steps "$MAX_STEPS"
run vikhr-fast report "$OUT/run"
