#!/bin/bash
# From nothing to a tuned and evaluated Russian 7B on one node with 8 GPUs of 80 GB, as in the Vikhr paper (arXiv 2405.13929).
#
#   BASE=mistral-7b-v0.1 bash examples/russian_7b.sh
#
# Stopped at any point, it goes on when run again. DRY_RUN=1 only prints and checks the commands, and estimates the cost.
# It has not been run at this size: by `vikhr-fast plan` the two trainings take 864 + 52 GPU-hours on A100s.
#
# What it needs, as files or as data sets of the Hub with their commit (hf:OWNER/NAME@COMMIT:PATTERN):
#   BASE        directory of Mistral-7B-v0.1 with tokenizer.model
#   CORPUS      corpus.toml with the sources ru and en, and [mix] with tokenizer = "$OUT/tokenizer" (docs/corpus.md);
#               its quality filter needs an endpoint for [annotate] and OPENAI_API_KEY
#   RU, EN      text that the vocabulary is learned from
#   HELD        Russian text that nothing is trained on
#   VELES, SAIGA, RUFLAN, NECTAR   the instruction sets of table 4
#   SBS         preferences for the reward model: prompt, chosen, rejected
#   RU_MMLU, RU_MMLU_PRO, RUXNLI   questions (`vikhr-fast evaluate translate` makes the first two of English ones)
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

BASE=${BASE:-inputs/mistral-7b-v0.1}
CORPUS=${CORPUS:-inputs/corpus.toml}
RU=${RU:-inputs/ru.jsonl.zst}
EN=${EN:-inputs/en.jsonl.zst}
HELD=${HELD:-inputs/held-ru.txt}
VELES=${VELES:-inputs/veles.parquet}
SAIGA=${SAIGA:-inputs/saiga.jsonl}
RUFLAN=${RUFLAN:-inputs/ruflan.parquet}
NECTAR=${NECTAR:-inputs/nectar.parquet}
SBS=${SBS:-inputs/sbs.parquet}
RU_MMLU=${RU_MMLU:-inputs/ru_mmlu.jsonl}
RU_MMLU_PRO=${RU_MMLU_PRO:-inputs/ru_mmlu_pro.jsonl}
RUXNLI=${RUXNLI:-inputs/ruxnli.jsonl}
OUT=${OUT:-runs/russian-7b}

# Is the machine fit, and what will it cost?
run vikhr-fast doctor --path .
vikhr-fast plan --config vikhr-7b-pretrain
vikhr-fast plan --config vikhr-7b-instruct

# 1. Vocabulary (section 3.1): 40,000 pieces of both languages. The report is the paper's figure 1 on your text.
stage "$OUT/tokenizer" vikhr-fast tokenizer train --input "$RU" "$EN" --vocab-size 40000
run vikhr-fast tokenizer report "$BASE" "$OUT/tokenizer" --text "held=$HELD"
run vikhr-fast tokenizer verify "$OUT/tokenizer" --text "$HELD"

# 2. The base's weights under it: kept pieces copied, new ones the mean of their old pieces.
stage "$OUT/adapted" vikhr-fast adapt --base "$BASE" --tokenizer "$OUT/tokenizer"

# 3. Corpus (section 3.2): deduplicated, scrubbed, filtered, as token shards. Look at $OUT/corpus/report.html.
run vikhr-fast corpus build "$CORPUS" --output "$OUT/corpus" --memory 64
SHARDS=$OUT/corpus/8-shards

# 4. Continued pre-training, table 3: CE + KL to a frozen copy of the adapted model, 11 billion tokens.
run torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m vikhr_fast.train --config vikhr-7b-pretrain \
    --model "$OUT/adapted" --output "$OUT/pretrained" \
    --data.train ru "$SHARDS/train/ru" en "$SHARDS/train/en" \
    --data.validation ru "$SHARDS/validation/ru" en "$SHARDS/validation/en"

# 5. Instruction sets (section 3.3, table 4): one schema, each question once, only what a reward model leaves.
stage "$OUT/veles" vikhr-fast instruct convert "$VELES" --source veles
stage "$OUT/saiga" vikhr-fast instruct convert "$SAIGA" --source saiga
stage "$OUT/ruflan" vikhr-fast instruct convert "$RUFLAN" --source ruflan
stage "$OUT/nectar" vikhr-fast instruct convert "$NECTAR" --source nectar
stage "$OUT/unique" vikhr-fast instruct dedup "$OUT/veles/conversations.jsonl" "$OUT/saiga/conversations.jsonl" \
    "$OUT/ruflan/conversations.jsonl" "$OUT/nectar/conversations.jsonl" --priority veles saiga nectar ruflan \
    --sets ru-mmlu "$RU_MMLU" ru-mmlu-pro "$RU_MMLU_PRO" --set-text question
stage "$OUT/reward" vikhr-fast instruct train-reward "$SBS" --columns prompt chosen rejected
stage "$OUT/good" vikhr-fast instruct filter "$OUT/unique/conversations.jsonl" --reward "$OUT/reward" --drop 0.3
stage "$OUT/chats" vikhr-fast instruct shard "$OUT/good/conversations.jsonl" --tokenizer "$OUT/pretrained/model"

# 6. Instruction tuning, table 5: three epochs, loss on the answers alone.
run torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m vikhr_fast.train --config vikhr-7b-instruct \
    --model "$OUT/pretrained/model" --output "$OUT/tuned" \
    --data.train veles "$OUT/chats/train/veles" saiga "$OUT/chats/train/saiga" \
    ruflan "$OUT/chats/train/ruflan" nectar "$OUT/chats/train/nectar" \
    --data.validation veles "$OUT/chats/validation/veles" nectar "$OUT/chats/validation/nectar"

# 7. Evaluation (section 4): benchmarks and held-out text, and the prompts of table 6.
run vikhr-fast evaluate "$OUT/tuned/model" --output "$OUT/evaluation" --text "held=$HELD" \
    --tasks "ruxnli=$RUXNLI" "ru_mmlu=$RU_MMLU" "ru_mmlu_pro=$RU_MMLU_PRO"
run vikhr-fast generate compare --models pretrained "$OUT/pretrained/model" tuned "$OUT/tuned/model"

# 8. A page of the trainings, and a directory with a model card to complete and publish.
run vikhr-fast report "$OUT/pretrained"
run vikhr-fast report "$OUT/tuned"
stage "$OUT/published" vikhr-fast export --run "$OUT/tuned"
