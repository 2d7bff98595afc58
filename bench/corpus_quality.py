"""Table 8 of the paper in small: the same model trained on a corpus with planted noise, as it is and cleaned.

    python bench/corpus_quality.py DATA OUT [SCRATCH]    # DATA holds ru/news.txt, ru/wiki.txt and en/docs.txt

Perplexity and bits per byte are those of clean paragraphs of both sources that no corpus holds.
"""

import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from corpora import write_jsonl
from endpoint import serving
from planted_noise import judge_of, plant, read_paragraphs, write_config

from vikhr_fast.config import train_config
from vikhr_fast.corpus.build import Build, build
from vikhr_fast.corpus.mix import Mix, mix
from vikhr_fast.corpus.settings import MixStage
from vikhr_fast.corpus.shard import Shard, TokenShards, write_shards
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.report import Section, Table, write_report
from vikhr_fast.train.loop import train

SEQUENCE, BATCH = 256, 16
SOURCES = ("news", "wiki")


def make_corpora(data: Path, scratch: Path) -> None:
    """`raw` and `clean` token shards, `held-out` ones, and the tokenizer of both."""
    sources = {name: read_paragraphs([data / "ru" / f"{name}.txt"]) for name in SOURCES}
    (scratch / "corpus").mkdir()
    planted = plant(scratch / "corpus", sources, read_paragraphs([data / "en" / "docs.txt"], 100), rate=1.0)
    os.environ["PLANTED_KEY"] = "none"
    with serving(judge_of(planted)) as endpoint:
        write_config(planted, [*SOURCES, "web", "english"], endpoint.url, 1500, 4 << 20)
        # Neither corpus holds anything out, nor gives a source another weight.
        text = planted.config.read_text().replace("weight = 0.5", "weight = 1.0", 1).replace("= 0.05", "= 0.0")
        planted.config.write_text(text)
        build(Build(planted.config, scratch / "run"))
    tokenizer = scratch / "corpus" / "tokenizer"
    mix(Mix(scratch / "run" / "1-collect", scratch / "raw", MixStage(tokenizer=tokenizer, validation=0.0)))
    (scratch / "run" / "8-shards").rename(scratch / "clean")
    held_out = write_jsonl(scratch / "held-out.jsonl", [{"text": text} for text in planted.held_out[0]])
    write_shards(Shard((held_out,), tokenizer, scratch / "held-out"))
    shape = ModelConfig(
        vocab_size=1200,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=SEQUENCE,
    )
    Mistral(shape, seed=1).save_pretrained(scratch / "model")
    for file in tokenizer.iterdir():
        shutil.copy(file, scratch / "model")


def tokens_of(corpus: Path) -> int:
    return sum(TokenShards.open(path, verify=False).num_tokens for path in (corpus / "train").iterdir())


def trained(scratch: Path, name: str, corpus: str, tokens: int) -> dict[str, Any]:
    shards = {path.name: str(path) for path in sorted((scratch / corpus / "train").iterdir())}
    steps = max(1, tokens // (SEQUENCE * BATCH))
    settings = {
        "model": str(scratch / "model"),
        "output": str(scratch / name),
        "data": {"train": shards, "sequence_length": SEQUENCE, "epochs": 20},
        "batch": {"micro_batch": BATCH, "sequences_per_step": BATCH},
        "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 10},
        "kl": {"weight": 0.0},
        "runtime": {"device": "cpu", "dtype": "float32", "threads": 2},
        "schedule": {"max_steps": steps},
    }
    model = Mistral.from_pretrained(train(train_config(settings, "table 8")))
    held_out = TokenShards.open(scratch / "held-out")
    found = score_shards(model, held_out, sequence_length=SEQUENCE, micro_batch=8)
    return {
        "run": name,
        "tokens": steps * SEQUENCE * BATCH,
        "perplexity": round(math.exp(found.loss), 2),
        "bits_per_byte": round(found.bits_per_byte, 4),
    }


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as directory:
        scratch = Path(directory)
        make_corpora(data, scratch)
        raw, clean = tokens_of(scratch / "raw"), tokens_of(scratch / "clean")
        results = []
        for name, corpus, tokens in (
            ("raw, all its tokens", "raw", raw),
            ("clean, all its tokens", "clean", clean),
            ("raw, as many tokens as clean", "raw", clean),
            ("clean, as many tokens as raw", "clean", raw),
        ):
            results.append(trained(scratch, name, corpus, tokens))
            print(json.dumps(results[-1]), flush=True)
    (out / "corpus-quality.json").write_text(json.dumps({"raw": raw, "clean": clean, "runs": results}, indent=2) + "\n")
    rows = tuple((r["run"], f"{r['tokens']:,}", str(r["perplexity"]), str(r["bits_per_byte"])) for r in results)
    table = Table("One seed.", ("corpus", "tokens", "perplexity", "bits per byte"), rows)
    write_report(
        out / "corpus-quality.html", "Table 8 in small", "Raw and cleaned text.", [Section("", parts=(table,))]
    )


if __name__ == "__main__":
    main()
