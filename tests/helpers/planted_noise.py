"""A corpus with planted noise, and what a run of `corpus build` made of it.

Run as a script it takes real text: python tests/helpers/planted_noise.py DATA OUTPUT, where DATA holds ru/*.txt and
en/*.txt.
"""

import json
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from corpora import write_jsonl
from endpoint import Endpoint, serving
from transformers import BertConfig, BertModel, BertTokenizerFast

from vikhr_fast.corpus.build import Build, build
from vikhr_fast.corpus.dedup import deduplicate
from vikhr_fast.corpus.minhash import MinHasher, jaccard
from vikhr_fast.data.documents import Documents
from vikhr_fast.encoder.classifier import Classifier, Quality
from vikhr_fast.experiments.noise import GOODS, SEEN, Generator, bad_documents, bad_words, misread, nearly
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

BOILERPLATE = (
    "Перепечатка материалов разрешена только с указанием активной ссылки на источник, "
    "мнение редакции может не совпадать с мнением авторов публикаций."
)
KEYWORDS = ("купить", "скидк", "руб", "акция", "http", "<div", "</", "href", "каталог", "var ", "|", "&nbsp")
GERMAN = str.split(
    "der die das und ist nicht mit auf ein eine für dem den von zu im sich auch werden bei nach wie über"
)
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю")
_PARAGRAPHS = 6  # of a document at most


def scripts(chance: random.Random, _: Sequence[str]) -> str:
    return "\n".join(
        f"var a{chance.randint(1, 99)}=document.getElementById('b{chance.randint(1, 99)}');if(!a{{}}){{return;}}"
        for _ in range(chance.randint(5, 15))
    )


def price_lists(chance: random.Random, _: Sequence[str]) -> str:
    return "\n".join(
        f"{chance.choice(GOODS)} арт. {chance.randint(1000, 99999)} — {chance.randint(10, 9999)},00 руб/шт"
        for _ in range(chance.randint(8, 20))
    )


def keys_at_random(chance: random.Random, _: Sequence[str]) -> str:
    return " ".join(
        "".join(chance.choices(chance.choice(_KEYS), k=chance.randint(3, 9))) for _ in range(chance.randint(30, 90))
    )


def forum_tags(chance: random.Random, good: Sequence[str]) -> str:
    words = chance.choice(good).split()[:40]
    return "".join(f"[b]{word}[/b][url=http://{chance.choice(GERMAN)}.ru/{word}]" for word in words)


HELD_OUT: tuple[Generator, ...] = (
    *(scripts, price_lists, misread("cp1251", "koi8-r"), bad_words(GERMAN), keys_at_random, forum_tags),
)
"""Kinds that no classifier is trained on."""


class Private(NamedTuple):
    """Private strings that were planted, by kind."""

    email: list[str]
    phone: list[str]
    ip: list[str]
    key: list[str]


def private_strings(count: int, seed: int) -> Private:
    """So many of each kind."""
    chance = random.Random(seed)
    letters, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"

    def some(alphabet: str, length: int) -> str:
        return "".join(chance.choices(alphabet, k=length))

    return Private(
        [f"{some(letters, 7)}.{some(letters, 5)}@{some(letters, 6)}.ru" for _ in range(count)],
        [f"+7 (91{some(digits, 1)}) {some('123456789', 3)}-{some(digits, 2)}-{some(digits, 2)}" for _ in range(count)],
        [
            f"{chance.choice((91, 95, 178))}.{chance.randint(10, 250)}.{chance.randint(1, 250)}.{chance.randint(1, 9)}"
            for _ in range(count)
        ],
        [f"ghp_{some(letters + digits, 36)}" for _ in range(count)],
    )


@dataclass
class Planted:
    """What was planted, and where the corpus is."""

    config: Path
    clean: list[str]
    """Paragraphs of five words and more, none a near-duplicate of another."""
    exact: int = 0
    near: list[str] = field(default_factory=list)
    """Of Jaccard 0.8 and more with the paragraph they repeat."""
    boilerplate: int = 0
    bad: set[str] = field(default_factory=set)
    contaminated: set[str] = field(default_factory=set)
    """Evaluation texts that stand in documents."""
    private: Private = field(default_factory=lambda: Private([], [], [], []))
    held_out: tuple[list[str], list[str]] = ([], [])
    """Good and bad documents that are in no source."""


def read_paragraphs(files: Sequence[Path], limit: int = 10**9) -> list[str]:
    """Paragraphs of five words and more."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    paragraphs = [paragraph.strip() for text in texts for paragraph in re.split(r"\n\s*\n", text)]
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) >= 5][:limit]


def without_repetitions(sources: dict[str, list[str]]) -> dict[str, list[str]]:
    """The sources without paragraphs that are anything like an earlier one of any source."""
    keep = iter(deduplicate([p for own in sources.values() for p in own], threshold=0.5).keep.tolist())
    return {name: [paragraph for paragraph in own if next(keep)] for name, own in sources.items()}


def plant(directory: Path, sources: dict[str, list[str]], english: list[str], rate: float, seed: int = 1) -> Planted:
    """Writes the sources with planted noise, a tiny encoder, a tokenizer, an evaluation set and corpus.toml.

    Args:
        directory: empty.
        sources: clean Russian paragraphs by source.
        english: clean paragraphs of the replay source.
        rate: how many of each kind of noise a clean paragraph.
        seed: of all choices.
    """
    chance = random.Random(seed)
    sources = without_repetitions({**sources, "english": english})
    english = sources.pop("english")
    clean = [paragraph for paragraphs in sources.values() for paragraph in paragraphs]
    count = max(8, round(rate * len(clean)))
    evaluation = [p for p in clean if len(p.split()) >= 20][5 :: max(10, len(clean) // 60)]
    aside = set(evaluation)
    held_back = [p for p in clean[::10] if p not in aside]
    aside.update(held_back)
    kept = {name: [p for p in paragraphs if p not in aside] for name, paragraphs in sources.items()}
    documents = {name: _grouped(paragraphs, _PARAGRAPHS, chance) for name, paragraphs in kept.items()}
    planted = Planted(directory / "corpus.toml", [p for paragraphs in kept.values() for p in paragraphs] + english)
    flat = [document for own in documents.values() for document in own]

    is_clean = set(planted.clean)
    # Copies go into later documents, so that the original is the first.
    for number in range(4 * count):
        at = chance.randrange(len(flat) - 1)
        original = chance.choice(flat[at])
        # One word of a short paragraph is in too many of its shingles.
        if original not in is_clean or (number % 2 and len(original.split()) < 50):
            continue
        copy = nearly(original, chance) if number % 2 else original
        if number % 2 and similarity(original, copy) < 0.8:
            continue
        chance.choice(flat[at + 1 :]).append(copy)
        if number % 2:
            planted.near.append(copy)
        else:
            planted.exact += 1
    for document in chance.sample(flat, min(count // 2, len(flat))):
        document.append(BOILERPLATE)
        planted.boilerplate += 1
    planted.private = private_strings(count // 4, seed)
    for kind in planted.private:
        for value in kind:
            chance.choice(flat).append(f"Пишите или звоните по адресу {value} в любое время дня и ночи.")
    web: list[list[str]] = []
    for text in evaluation[::2]:
        planted.contaminated.add(text)
        web.append([f"Вопрос викторины. {text} Отвечайте в комментариях."])
    bad = bad_documents(SEEN, count, [p for paragraphs in kept.values() for p in paragraphs], seed)
    planted.bad = set(bad)
    web += [[text] for text in bad]
    chance.shuffle(web)
    documents["web"] = web
    documents["english"] = _grouped(english, _PARAGRAPHS, chance)
    for name, own in documents.items():
        write_jsonl(directory / f"{name}.jsonl", [{"text": "\n\n".join(pieces)} for pieces in own])
    with (directory / "web.jsonl").open("a") as file:
        file.write("{broken\n")
    write_jsonl(directory / "evaluation.jsonl", [{"question": text} for text in evaluation])
    good = ["\n\n".join(pieces) for pieces in _grouped(held_back, 2, chance)]
    planted.held_out = (good, bad_documents(HELD_OUT, len(good), held_back, seed + 1))
    make_encoder(directory / "encoder", [*planted.clean, *bad], seed)
    write_jsonl(directory / "vocabulary.jsonl", [{"text": text} for text in planted.clean])
    train_tokenizer(
        TrainTokenizer(input=(directory / "vocabulary.jsonl",), output=directory / "tokenizer", vocab_size=1200)
    )
    return planted


def similarity(first: str, second: str) -> float:
    sets = MinHasher().shingles([first, second], threads=1)
    return float(jaccard(sets, [(0, 1)])[0])


def _grouped(paragraphs: list[str], most: int, chance: random.Random) -> list[list[str]]:
    """Documents of one to `most` paragraphs."""
    documents, start = [], 0
    while start < len(paragraphs):
        size = chance.randint(1, most)
        documents.append(paragraphs[start : start + size])
        start += size
    return documents


def make_encoder(directory: Path, texts: list[str], seed: int) -> None:
    """A tiny BERT with random weights, as the hub holds its models."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    tokenizer.train_from_iterator(texts, vocab_size=3000, limit_alphabet=400, show_progress=False)
    directory.mkdir(parents=True)
    tokenizer.save_model(str(directory))
    BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=False).save_pretrained(directory)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(directory)


def write_config(planted: Planted, sources: Sequence[str], url: str, annotated: int, part_bytes: int) -> None:
    root = planted.config.parent
    lines = [f"part_bytes = {part_bytes}"]
    for name in sources:
        lines += [f"[sources.{name}]", f"input = ['{root / name}.jsonl']"]
    lines += [
        "weight = 0.5",  # of the last source, the English replay
        "kl_weight = 2.0",
        "[dedup]",
        "[scrub]",
        "[decontaminate.sets.quiz]",
        f"input = ['{root / 'evaluation.jsonl'}']",
        "text = ['question']",
        "[annotate]",
        f"model = 'judge'\nbase_url = '{url}'\nkey_variable = 'PLANTED_KEY'",
        f"documents = {annotated}\nrequests_per_minute = 1e6\nbackoff_seconds = 0.01",
        "[train_filter]",
        f"encoder = '{root / 'encoder'}'\nmaximum_tokens = 128\nlearning_rate = 1e-3",
        "epochs = 15\nbatch = 8\npatience = 5\nheld_out = 0.15",
        "[filter]\ndevice = 'cpu'",
        f"[mix]\ntokenizer = '{root / 'tokenizer'}'\nvalidation = 0.05",
    ]
    planted.config.write_text("\n".join([*lines, ""]), encoding="utf-8")


def judge_of(planted: Planted) -> Endpoint:
    beginnings = {text.strip()[:30] for text in planted.bad}
    return Endpoint(judge=lambda text: 1 if text.strip()[:30] in beginnings else 4)


def measure(planted: Planted, run: Path) -> dict[str, Any]:
    """What became of everything that was planted."""
    stages = {path.name: Documents.open(path) for path in sorted(run.iterdir()) if path.name[0] in "12347"}
    texts = {
        name: [text for table in documents.tables() for text in table["text"].to_pylist()]
        for name, documents in stages.items()
    }
    before, after = (_pieces(texts[name]) for name in ("1-collect", "2-dedup"))
    lost = [paragraph for paragraph in planted.clean if paragraph not in after]
    private = [value for kind in planted.private for value in kind]
    scrubbed = "\n".join(texts["3-scrub"])
    decontaminated = "\n".join(texts["4-decontaminate"])
    return {
        "exact_planted": planted.exact,
        "exact_left": sum(before[p] - 1 for p in planted.clean if before[p] > 1 and after[p] > 1),
        "near_planted": len(planted.near),
        "near_left": sum(paragraph in after for paragraph in planted.near),
        "boilerplate_planted": planted.boilerplate,
        "boilerplate_left": after[BOILERPLATE],
        "clean_paragraphs": len(planted.clean),
        "clean_removed": len(lost),
        "private_planted": len(private),
        "private_left": sum(value in scrubbed for value in private),
        "contaminated_planted": len(planted.contaminated),
        "contaminated_left": sum(text in decontaminated for text in planted.contaminated),
        "contaminated_found": stages["4-decontaminate"].total["contaminated"],
        "bad_planted": len(planted.bad),
        "bad_left": sum(text in planted.bad for text in texts["7-filter"]),
        "filter": {name: own.__dict__ for name, own in held_out_quality(planted, run / "6-classifier").items()},
        "rejected": stages["1-collect"].total["rejected"],
        "bytes": {name: documents.total["bytes"] for name, documents in stages.items()},
        "tokens": {name: own["tokens"] for name, own in json.loads((run / "tokens.json").read_text()).items()},
        "shards": json.loads((run / "8-shards" / "manifest.json").read_text())["shards"],
        "seconds": json.loads((run / "times.json").read_text()),
    }


class _pieces(dict[str, int]):  # noqa: N801  a counter
    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        for text in texts:
            for piece in text.split("\n\n"):
                self[piece] = self[piece] + 1

    def __missing__(self, _key: str) -> int:
        return 0


def held_out_quality(planted: Planted, classifier: Path) -> dict[str, Quality]:
    """Good against bad documents of kinds never seen: the classifier, and what needs none."""
    good, bad = planted.held_out
    texts = [*good, *bad]
    is_good = np.arange(len(texts)) < len(good)
    loaded = Classifier.load(classifier, "cpu")
    lengths = np.array([len(text) for text in texts])
    seen = sorted(len(text) for text in planted.bad)
    return {
        "classifier": Quality.of(loaded.probabilities(texts, 16_384) >= loaded.threshold, is_good),
        "length": Quality.of(lengths > seen[int(0.9 * len(seen))], is_good),
        "keywords": Quality.of(np.array([not any(k in t.lower() for k in KEYWORDS) for t in texts]), is_good),
    }


def main() -> None:
    data, output = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # so small is the encoder that threads would wait for each other
    sources = {path.stem: read_paragraphs([path]) for path in sorted((data / "ru").glob("*.txt"))}
    english = read_paragraphs(sorted((data / "en").glob("*.txt")), 4000)
    output.mkdir(parents=True)
    started = time.monotonic()
    planted = plant(output, sources, english, rate=0.03)
    print(f"planted in {time.monotonic() - started:.0f} s", file=sys.stderr)
    os.environ["PLANTED_KEY"] = "sk-planted"
    with serving(judge_of(planted)) as endpoint:
        write_config(planted, [*sources, "web", "english"], endpoint.url, 4000, 4 << 20)
        build(Build(planted.config, output / "run"))
    print(json.dumps(measure(planted, output / "run"), ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
