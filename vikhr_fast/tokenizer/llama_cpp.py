"""What llama.cpp calls the pre-tokenizers that it has.

Its converter knows a byte-level tokenizer by a hash of the ids of a text, which no vocabulary but the original gives.
"""

PRE_TOKENIZERS = {
    "gpt2": "gpt-2",
    "digits_gpt2": "smollm",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "tekken": "tekken",
}
"""By the names that `byte_level.split_kind` gives."""
