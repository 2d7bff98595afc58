#!/bin/bash
# A real pretrained model, SmolLM2-135M-Instruct, learns Russian on a CPU: half an hour on two cores. Its vocabulary is
# extended in place, so its English stays; then continued pre-training, instruction tuning, and a look at what came of it.
#
#   bash examples/real_run.sh
#   BASE=my-model TEXT=my-russian.txt DOCUMENT_END='<|end_of_text|>' bash examples/real_run.sh
#
# BASE is a byte-level base with a chat template. By default it comes from a package of pip, and TEXT from one of Debian. Run
# it again to go on; DRY_RUN=1 only checks the commands. `make real` compares the ways to do it, with three seeds.
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

BASE=${BASE:-build/real/smollm2}
TEXT=${TEXT:-build/real/handbook.txt}
DOCUMENT_END=${DOCUMENT_END:-<|endoftext|>}
VOCABULARY=${VOCABULARY:-57152}
CHATS=${CHATS:-vikhr_fast/experiments/sample/data/instructions}
STEPS=${STEPS:-60}
OUT=${OUT:-runs/real-run}

# 0. A base and text, unless you have your own; and what of the base a command would stumble over.
if [ -z "${DRY_RUN:-}" ]; then
    [ -e "$BASE" ] || make "$BASE"
    [ -e "$TEXT" ] || make "$TEXT"
fi
mkdir -p "$OUT"
run vikhr-fast doctor "$BASE"

# 1. The base's merges go on, learnt from Russian: its own ids stay, and how English is split. Then, tokens a word.
stage "$OUT/tokenizer" vikhr-fast tokenizer extend "$BASE" --input "$TEXT" --vocab-size "$VOCABULARY"
run vikhr-fast tokenizer verify "$OUT/tokenizer" --generated 2000 --chats 100
run vikhr-fast tokenizer report "$BASE" "$OUT/tokenizer" --text "ru=$TEXT"

# 2. The base's weights under it: a new token begins as the mean of those that the base spells it with.
stage "$OUT/adapted" vikhr-fast adapt --base "$BASE" --tokenizer "$OUT/tokenizer" \
    --base-bos "$DOCUMENT_END" --base-eos "$DOCUMENT_END"

# 3. Token shards of the text, a part of it held out.
cat > "$OUT/corpus.toml" <<TOML
[sources.ru]
input = ["$TEXT"]
[mix]
tokenizer = "$OUT/adapted"
validation = 0.02
TOML
run vikhr-fast corpus build "$OUT/corpus.toml" --output "$OUT/corpus"

# 4. Continued pre-training, CE + KL to the adapted model over the tokens that the base knew; and how it goes on with texts.
SHARDS=$OUT/corpus/8-shards
run vikhr-fast train --config real-pretrain --model "$OUT/adapted" --output "$OUT/run" --kl.support shared \
    --data.train ru "$SHARDS/train/ru" --data.validation ru "$SHARDS/validation/ru" \
    --schedule.max-steps "$STEPS" --schedule.validate-every 20
run vikhr-fast generate complete "$OUT/run/model" --text "Установка системы начинается" "The system" --max-tokens 40

# 5. Instruction tuning with the base's own chat template, loss on the answers alone.
stage "$OUT/russian" vikhr-fast instruct convert "$CHATS/russian.jsonl" --source russian
stage "$OUT/english" vikhr-fast instruct convert "$CHATS/english.jsonl" --source english
stage "$OUT/unique" vikhr-fast instruct dedup "$OUT/russian/conversations.jsonl" "$OUT/english/conversations.jsonl"
stage "$OUT/chat-shards" vikhr-fast instruct shard "$OUT/unique/conversations.jsonl" --tokenizer "$OUT/run/model" \
    --sequence-length 256 --validation 0.1
CHAT_SHARDS=$OUT/chat-shards
run vikhr-fast train --config real-instruct --model "$OUT/run/model" --output "$OUT/tuned" \
    --data.train russian "$CHAT_SHARDS/train/russian" english "$CHAT_SHARDS/train/english" \
    --data.validation russian "$CHAT_SHARDS/validation/russian" english "$CHAT_SHARDS/validation/english"

# 6. The same questions before and after.
run vikhr-fast generate compare --models base "$BASE" adapted "$OUT/run/model" tuned "$OUT/tuned/model" --max-tokens 40
run vikhr-fast report "$OUT/run"
