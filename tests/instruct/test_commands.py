"""The commands hand in hand, with the flags as the README spells them."""

import json
from pathlib import Path

import pytest
from corpora import write_jsonl
from preferring import make_encoder, pairs_of

from vikhr_fast.cli import main
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import ExitCode


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0)


def test_from_an_instruction_set_to_answers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = pairs_of("раз", 60, seed=1)
    rows = [
        {"instruction": p.prompt, "input": "", "output": p.chosen if n % 2 else p.rejected} for n, p in enumerate(pairs)
    ]
    write_jsonl(Path("one.jsonl"), [*rows[:40], rows[0], {"broken": 1}])
    write_jsonl(Path("two.jsonl"), rows[35:])
    write_jsonl(Path("set.jsonl"), [{"question": rows[1]["instruction"] + " и ещё слова до тринадцати, чтобы хватило"}])
    write_jsonl(Path("pairs.jsonl"), [{"q": p.prompt, "good": p.chosen, "bad": p.rejected} for p in pairs])
    make_encoder(Path("encoder"), ("раз",))
    for name in ("one", "two"):
        assert run("instruct", "convert", f"{name}.jsonl", "--source", name, "--output", name) == 0
    files = ("one/conversations.jsonl", "two/conversations.jsonl")
    dedup = ("--priority", "two", "--sets", "quiz", "set.jsonl", "--set-text", "question", "--set-words", "5")
    assert run("instruct", "dedup", *files, *dedup, "--output", "unique") == 0
    reward = ("--columns", "q", "good", "bad", "--encoder", "encoder", "--maximum-tokens", "64", "--held-out", "0.3")
    assert run("instruct", "train-reward", "pairs.jsonl", *reward, "--output", "reward") == 0
    unique = "unique/conversations.jsonl"
    scored = ("--reward", "reward", "--drop", "0.2", "--drops", "two", "0.1", "--device", "cpu")
    assert run("instruct", "filter", unique, *scored, "--output", "good") == 0
    shard = ("--tokenizer", model, "--weights", "one", "2.0", "--validation", "0.2", "--sequence-length", "400")
    assert run("instruct", "shard", "good/conversations.jsonl", *shard, "--output", "shards") == 0
    assert TokenShards.open(Path("shards/train/one")).has_mask
    kept = [json.loads(line) for line in Path(unique).read_text().splitlines()]
    assert [one["source"] for one in kept[:24]].count("two") == 24  # the more trusted source comes first
    assert rows[1]["instruction"] not in [one["messages"][0]["content"] for one in kept]
    assert len({one["messages"][0]["content"] for one in kept}) == len(kept)

    write_jsonl(Path("prompts.jsonl"), [{"prompt": "Кто там?"}])
    batch = ("--input", "prompts.jsonl", "--max-tokens", "5", "--temperature", "0.7", "--top-p", "0.9", "--seed", "3")
    assert run("generate", "batch", model, *batch, "--output", "answers.jsonl") == 0
    assert json.loads(Path("answers.jsonl").read_text())["tokens"] <= 5
    compare = ("--models", "base", model, "tuned", model, "--max-tokens", "4")
    assert run("generate", "compare", *compare) == 0
    assert run("instruct", "shard", "one.jsonl", "--tokenizer", model, "--output", "bad") == ExitCode.BAD_INPUT
    assert not Path("bad").exists()
