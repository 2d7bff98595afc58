"""A tiny XLM-R with random weights, and planted preferences of generators with nothing in common but the plant."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

from vikhr_fast.instruct.preferences import Pair

# What makes an answer good or bad; all other words differ between the generators.
GOOD = ("потому что", "например", "во-первых", "таким образом", "проверим")
BAD = ("не знаю", "отстань", "бла-бла", "как обычно", "наверное")
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def generator(name: str, words: int = 80) -> tuple[list[str], list[str]]:
    """Words and openings that no generator of another name uses."""
    return [f"{name}{number}" for number in range(words)], [f"{name}вопрос{number}" for number in range(20)]


def pairs_of(name: str, count: int, seed: int) -> list[Pair]:
    """Good answers are as often the longer as the shorter ones."""
    chance = random.Random(seed)
    words, openings = generator(name)

    def answer(markers: tuple[str, ...]) -> str:
        parts = chance.choices(words, k=chance.randint(4, 18))
        for marker in chance.sample(markers, chance.randint(1, 2)):
            parts.insert(chance.randint(0, len(parts)), marker)
        return " ".join(parts)

    return [
        Pair(f"{chance.choice(openings)} {' '.join(chance.choices(words, k=4))}?", answer(GOOD), answer(BAD))
        for _ in range(count)
    ]


def make_encoder(directory: Path, names: tuple[str, ...], seed: int = 0) -> None:
    """XLM-R's shape, special tokens and pair format, over whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [" ".join([*words, *openings]) for words, openings in map(generator, names)]
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator([*texts, " ".join([*GOOD, *BAD])], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=80, type_vocab_size=1, num_labels=1,
    )  # fmt: skip
    XLMRobertaForSequenceClassification(config).save_pretrained(directory)
