#!/bin/bash
# A small model learns your language from your text files, on a CPU: ten minutes on two cores, without network.
#
#   bash examples/your_language.sh                                      the Russian sample text of the package
#   TEXT='mine/*.txt' HELD='held/*.txt' bash examples/your_language.sh  your own: 100 KB or more, paragraphs of plain text
#
# BASE is the model to start from. The default is the tiny English model of `vikhr-fast demo`, which is trained first
# where it isn't there yet; it shows that every stage works, and no more than that. CHATS are conversations of any schema
# that `vikhr-fast instruct convert` knows. Run it again to go on; DRY_RUN=1 only checks the commands.
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

SAMPLE=vikhr_fast/experiments/sample/data
TEXT=${TEXT:-$SAMPLE/russian/*.txt}
HELD=${HELD:-$SAMPLE/russian_validation/*.txt}
CHATS=${CHATS:-$SAMPLE/instructions/russian.jsonl}
ENGLISH=${ENGLISH:-runs/demo/text/english-train.jsonl}
BASE=${BASE:-runs/demo/seed-0/base/model}
OUT=${OUT:-runs/your-language}

# 0. The base, and English text to replay.
if [ ! -e "$BASE" ]; then run vikhr-fast demo; fi
mkdir -p "$OUT"

# 1. A vocabulary of both languages: with yours alone, English words would be broken up. Then, tokens a word, before and after.
stage "$OUT/tokenizer" vikhr-fast tokenizer train --input "$TEXT" "$ENGLISH" --vocab-size 3072
run vikhr-fast tokenizer report "$BASE" "$OUT/tokenizer" --text "held=$HELD"

# 2. The base's weights under the new vocabulary.
stage "$OUT/adapted" vikhr-fast adapt --base "$BASE" --tokenizer "$OUT/tokenizer"

# 3. Your text, deduplicated and scrubbed, with a tenth of the English text beside it.
cat > "$OUT/corpus.toml" <<TOML
[sources.mine]
input = ["$TEXT"]
[sources.english]
input = ["$ENGLISH"]
weight = 0.1
[dedup]
[scrub]
[mix]
tokenizer = "$OUT/tokenizer"
validation = 0.05
TOML
run vikhr-fast corpus build "$OUT/corpus.toml" --output "$OUT/corpus"

# 4. Continued pre-training, CE + KL to the adapted model over the pieces that the base knew.
SHARDS=$OUT/corpus/8-shards
run vikhr-fast train --config demo-pretrain --model "$OUT/adapted" --output "$OUT/run" --kl.support shared \
    --data.train mine "$SHARDS/train/mine" english "$SHARDS/train/english" \
    --data.validation mine "$SHARDS/validation/mine" english "$SHARDS/validation/english"

# 5. Instruction tuning: conversations of one schema, without repeated questions, loss on the answers alone.
stage "$OUT/chats" vikhr-fast instruct convert "$CHATS" --source chats
stage "$OUT/unique" vikhr-fast instruct dedup "$OUT/chats/conversations.jsonl"
stage "$OUT/chat-shards" vikhr-fast instruct shard "$OUT/unique/conversations.jsonl" --tokenizer "$OUT/run/model" \
    --sequence-length 256 --validation 0.1
run vikhr-fast train --config demo-instruct --model "$OUT/run/model" --output "$OUT/tuned" \
    --data.train chats "$OUT/chat-shards/train/chats" --data.validation chats "$OUT/chat-shards/validation/chats"

# 6. How well both models predict text that neither has seen, what the tuned one answers, and pages of it.
run vikhr-fast evaluate "$OUT/adapted" --output "$OUT/evaluated/adapted" --text "held=$HELD"
run vikhr-fast evaluate "$OUT/tuned/model" --output "$OUT/evaluated/tuned" --text "held=$HELD"
run vikhr-fast generate compare --models adapted "$OUT/adapted" tuned "$OUT/tuned/model" --max-tokens 40
run vikhr-fast report "$OUT/evaluated/adapted" "$OUT/evaluated/tuned" --output "$OUT/evaluated/report.html"
run vikhr-fast report "$OUT/run"
