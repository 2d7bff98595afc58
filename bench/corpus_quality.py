"""Table 8 of the paper in small: the same tiny model trained on a corpus with planted noise, as it is and cleaned.

    python bench/corpus_quality.py DATA OUT [SCRATCH]    # DATA holds ru/news.txt, ru/wiki.txt and en/docs.txt

The noise: for each clean paragraph about one copy, half of them with words changed, and half a bad document. Cleaned is
what `corpus build` leaves after dedup, scrub, decontaminate and filter. Scored is a tenth of the paragraphs of both
Russian sources, which no corpus holds. All is fixed but the seed of the model and of the order of its data.
"""

import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from corpora import write_jsonl
from endpoint import serving
from planted_noise import Planted, judge_of, plant, read_paragraphs, write_config

from vikhr_fast.config import train_config
from vikhr_fast.corpus.build import Build, build
from vikhr_fast.corpus.documents import Documents
from vikhr_fast.corpus.mix import Mix, mix
from vikhr_fast.corpus.settings import MixStage
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.corpus.token_shards import TokenShards
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.report import Section, Table, bar_plot, write_report
from vikhr_fast.train.loop import train

SOURCES = ("news", "wiki")
NOISE_RATE = 0.5
ANNOTATED = 800
SEEDS = (0, 1, 2)
SEQUENCE, BATCH = 256, 16
SHAPE = ModelConfig(
    vocab_size=1200,
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=SEQUENCE,
)


def make_corpora(data: Path, scratch: Path) -> Planted:
    """Token shards `raw`, `clean` and `held-out` below `scratch`, with one tokenizer."""
    sources = {name: read_paragraphs([data / "ru" / f"{name}.txt"]) for name in SOURCES}
    (scratch / "corpus").mkdir()
    planted = plant(scratch / "corpus", sources, read_paragraphs([data / "en" / "docs.txt"], 100), rate=NOISE_RATE)
    os.environ["PLANTED_KEY"] = "none"
    with serving(judge_of(planted)) as endpoint:
        write_config(planted, [*SOURCES, "web", "english"], endpoint.url, ANNOTATED, 4 << 20)
        # Neither corpus holds anything out, nor gives a source another weight.
        text = planted.config.read_text().replace("weight = 0.5", "weight = 1.0", 1).replace("= 0.05", "= 0.0")
        planted.config.write_text(text)
        build(Build(planted.config, scratch / "run"))
    tokenizer = scratch / "corpus" / "tokenizer"
    mix(Mix(scratch / "run" / "1-collect", scratch / "raw", MixStage(tokenizer=tokenizer, validation=0.0)))
    (scratch / "run" / "8-shards").rename(scratch / "clean")
    held_out = write_jsonl(scratch / "held-out.jsonl", [{"text": text} for text in planted.held_out[0]])
    write_shards(Shard((held_out,), tokenizer, scratch / "held-out"))
    return planted


def tokens_of(corpus: Path) -> int:
    return sum(TokenShards.open(path).num_tokens for path in (corpus / "train").iterdir())


def trained(scratch: Path, corpus: str, tokens: int, seed: int) -> dict[str, Any]:
    """Trains a new model on so many tokens of a corpus, in as many passes as that takes; how well it predicts."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        model = Path(directory) / "model"
        Mistral(SHAPE, seed=seed).save_pretrained(model)
        for file in (scratch / "corpus" / "tokenizer").iterdir():
            shutil.copy(file, model)
        steps = max(1, tokens // (SEQUENCE * BATCH))
        settings = {
            "model": str(model),
            "output": str(Path(directory) / "run"),
            "seed": seed,
            "data": {
                "train": {path.name: str(path) for path in (scratch / corpus / "train").iterdir()},
                "sequence_length": SEQUENCE,
                "epochs": 20,
            },
            "batch": {"micro_batch": BATCH, "sequences_per_step": BATCH},
            "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 10},
            "kl": {"weight": 0.0},
            "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
            "schedule": {"max_steps": steps},
        }
        model = Mistral.from_pretrained(train(train_config(settings, "table 8")))
    found = score_shards(model, TokenShards.open(scratch / "held-out"), sequence_length=SEQUENCE, micro_batch=8)
    return {
        "corpus": corpus,
        "tokens": steps * SEQUENCE * BATCH,
        "seed": seed,
        "perplexity": math.exp(found.loss),
        "bits_per_byte": found.bits_per_byte,
    }


def shown(values: list[float], digits: int) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def write_page(path: Path, record: dict[str, Any]) -> None:
    """The report page of what `main` records."""
    sizes: dict[str, int] = record["tokens"]
    budgets = sorted({run["tokens"] for run in record["runs"]})

    def found(corpus: str, tokens: int, name: str) -> list[float]:
        return [run[name] for run in record["runs"] if (run["corpus"], run["tokens"]) == (corpus, tokens)]

    rows = tuple(
        (
            corpus,
            f"{tokens:,}",
            f"{tokens / sizes[corpus]:.2f}",
            shown(found(corpus, tokens, "perplexity"), 1),
            shown(found(corpus, tokens, "bits_per_byte"), 3),
        )
        for tokens in budgets
        for corpus in sizes
    )
    seeds = {run["seed"] for run in record["runs"]}
    caption = f"Held-out paragraphs of {' and '.join(SOURCES)}; {len(seeds)} seeds, mean ± standard error."
    table = Table(caption, ("corpus", "tokens trained on", "passes", "perplexity", "bits per byte"), rows)
    bars = {corpus: [statistics.mean(found(corpus, tokens, "bits_per_byte")) for tokens in budgets] for corpus in sizes}
    alt = "Bars: bits per byte after training on either corpus, for two numbers of tokens."
    figure = bar_plot(caption, alt, "bits per byte", [f"{tokens:,} tokens" for tokens in budgets], bars)
    summary = f"{SHAPE.num_hidden_layers} layers of {SHAPE.hidden_size}, new for every run."
    write_report(path, "Table 8 in small", summary, [Section("Quality", parts=(table, figure))])


def main() -> None:
    start = time.monotonic()
    torch.set_num_threads(1)  # so small are the models that threads would wait for each other
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as directory:
        scratch = Path(directory)
        planted = make_corpora(data, scratch)
        sizes = {corpus: tokens_of(scratch / corpus) for corpus in ("raw", "clean")}
        runs = []
        for seed in SEEDS:
            for tokens in sizes.values():
                for corpus in sizes:
                    runs.append(trained(scratch, corpus, tokens, seed))
                    print(json.dumps(runs[-1]), flush=True)
        left = Documents.open(scratch / "run" / "7-filter").counts
    record = {
        "held_out": {"sources": SOURCES, "documents": len(planted.held_out[0])},
        "tokens": sizes,
        "planted": {"exact": planted.exact, "near": len(planted.near), "bad": len(planted.bad)},
        "filtered": left,
        "seconds": round(time.monotonic() - start),
        "runs": runs,
    }
    (out / "corpus-quality.json").write_text(json.dumps(record, indent=2) + "\n")
    write_page(out / "corpus-quality.html", record)


if __name__ == "__main__":
    main()
