"""Tables for the terminal of what is looked at in passing: vocabularies, conversations, shards, stages, answers."""

from collections import Counter
from pathlib import Path
from typing import Any

from vikhr_fast.chat.conversation import read_conversations
from vikhr_fast.corpus.dedup_stage import PAIRS
from vikhr_fast.corpus.stats import counts_table
from vikhr_fast.data.documents import Documents
from vikhr_fast.data.read import read_objects
from vikhr_fast.data.token_shards import FORMAT, MANIFEST_NAME, TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.inference.batch import chat_of
from vikhr_fast.inference.compare import NO_ANSWER, side_by_side
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.dedup import REMOVED
from vikhr_fast.instruct.filter import SCORES
from vikhr_fast.instruct.rejected import REJECTED
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.html import Table
from vikhr_fast.io.names import distinct_names
from vikhr_fast.io.provenance import value_table
from vikhr_fast.io.run_directory import flat
from vikhr_fast.llm.ask import FAILED
from vikhr_fast.tokenizer.load import find_tokenizer
from vikhr_fast.tokenizer.new_pieces import REPORT_NAME as EXTENSION
from vikhr_fast.tokenizer.report import vocabularies_table
from vikhr_fast.train.reference import ADAPTATION

_SAMPLES = 6
_REASONS = 20
_SHOWN_CHARACTERS = 600


def tokenizer_tables(directories: dict[str, Path]) -> list[Table]:
    """Of tokenizers by the names to show."""
    found = [vocabularies_table({name: find_tokenizer(directory) for name, directory in directories.items()})]
    for name, directory in directories.items():
        if (file := directory / EXTENSION).exists():
            found.append(value_table(f"{name}: what was added to the base.", flat(read_json(file))))
    return found


def adapted_tables(directory: Path) -> list[Table]:
    """Of a model that `vikhr-fast adapt` made: where the rows of its embedding and head come from."""
    report = read_json(directory / ADAPTATION)
    counts = {name.replace("_", " "): value for name, value in report.items() if name not in ("worst", "base_ids")}
    worst = tuple((one["piece"], str(one["id"]), str(one["base_pieces"])) for one in report["worst"])
    kept, new = report["copied"] + report["by_role"], report["averaged"]
    return [
        value_table(f"{kept:,} of {kept + new:,} pieces keep the base's rows, {new:,} are new.", counts),
        Table("New rows that are the mean of most.", ("piece", "id", "pieces in the base"), worst),
        *tokenizer_tables({directory.resolve().name: directory}),
    ]


def conversation_tables(directory: Path) -> list[Table]:
    """Of what a stage of `instruct` wrote: what it kept, what it left out and why, and how that reads."""
    conversations = list(read_conversations([directory / CONVERSATIONS]))
    counts: dict[str, Counter[str]] = {}
    for one in conversations:
        answers = [message.content for message in one.messages if message.role == "assistant"]
        own = counts.setdefault(one.source, Counter())
        own.update({"conversations": 1, "answers": len(answers), "characters": sum(map(len, answers))})
        own[f"language {one.language}"] += 1
    languages = sorted({name for own in counts.values() for name in own if name.startswith("language ")})
    sources = []
    for source, own in counts.items():
        means = (f"{own['answers'] / own['conversations']:.2f}", f"{own['characters'] / own['answers']:,.0f}")
        sources.append((source, f"{own['conversations']:,}", *means, *(f"{own[language]:,}" for language in languages)))
    header = ("source", "conversations", "answers in one", "characters in an answer", *languages)
    left_out = [line for name in (REJECTED, REMOVED, FAILED) for line in read_lines(directory / name)]
    counted = Counter(str(line.get("reason") or f"by {line['by']}") for line in left_out)
    reasons = tuple((reason, f"{count:,}") for reason, count in counted.most_common(_REASONS))
    chosen = dict.fromkeys(conversations[number * len(conversations) // _SAMPLES] for number in range(_SAMPLES))
    samples = tuple((one.source, _shortened(one.prompt), _shortened(one.answer)) for one in chosen)
    manifest = directory / MANIFEST_NAME
    found = flat(read_json(manifest)) if manifest.exists() else {}
    return [
        Table(f"{len(conversations):,} conversations of {len(counts):,} sources.", header, tuple(sources)),
        Table(f"Left out, {len(left_out):,} in all; the commonest reasons.", ("reason", "how many"), reasons),
        value_table("What `instruct convert` counted.", found),
        _scores(read_lines(directory / SCORES)),
        Table("From all over the file.", ("source", "question", "answer"), samples),
    ]


def _scores(lines: list[dict[str, Any]]) -> Table:
    rows = []
    for source in dict.fromkeys(line["source"] for line in lines):
        own = [line for line in lines if line["source"] == source]
        median = sorted(line["score"] for line in own)[len(own) // 2]
        rows.append((source, f"{len(own):,}", f"{sum(line['kept'] for line in own):,}", f"{median:.3f}"))
    return Table("Scores of the reward model.", ("source", "scored", "kept", "median"), tuple(rows))


def shard_tables(directory: Path) -> list[Table]:
    """Of shards by split and source, as `corpus mix` and `instruct shard` write them, or of one directory of shards."""
    directories = [file.parent for file in sorted(directory.glob(f"*/**/{MANIFEST_NAME}"))] or [directory]
    rows, checksums = [], {}
    for path in directories:
        shards = TokenShards.open(path, verify=False)
        name = path.relative_to(directory).as_posix() if path != directory else path.resolve().name
        counts = (shards.num_documents, shards.num_tokens, shards.num_trained)
        lengths = (int(shards.lengths.mean()), int(shards.lengths.max()))
        rate = f"{shards.num_bytes / shards.num_trained:.2f}"
        rows.append((name, *(f"{count:,}" for count in counts), rate, *(f"{length:,}" for length in lengths)))
        checksums[name] = shards.sha256
    header = ("shards", "documents", "tokens", "predicted", "bytes a token", "mean length", "longest")
    return [
        Table("Token shards; lengths are of documents, in tokens.", header, tuple(rows)),
        value_table("SHA-256 of the manifests.", checksums),
    ]


def stage_tables(directory: Path) -> list[Table]:
    """Of what one of the `corpus` commands wrote."""
    manifest, name = read_json(directory / MANIFEST_NAME), directory.resolve().name
    if manifest.get("format") == FORMAT:
        return shard_tables(directory)
    figures = {key: value for key, value in manifest.items() if key not in ("stage", "work", "parts")}
    found = counts_table(name, Documents.open(directory)) if "parts" in manifest else value_table(name, flat(figures))
    pairs = tuple(
        (f"{one['similarity']:.3f}", _shortened(one["removed"]), _shortened(one["kept"]))
        for one in read_lines(directory / PAIRS)
    )
    return [
        found,
        Table("Removed paragraphs, the least similar first.", ("Jaccard", "removed", "kept in its place"), pairs),
        value_table(f"{manifest['stage']}: settings and inputs.", flat(manifest["work"])),
    ]


def is_answers(path: Path) -> bool:
    """Whether a file begins as one that `generate batch` wrote."""
    try:
        first = next((set(row) for _, row in read_objects(path)), set()) if path.suffix == ".jsonl" else set()
    except InputError:
        return False
    return bool({"answer", "error"} & first) and bool({"prompt", "messages"} & first)


def answer_tables(paths: dict[str, Path]) -> list[Table]:
    """Of files of answers, or directories of them, side by side; InputError where they answer different prompts."""
    files = [
        file
        for path in paths.values()
        for file in (filter(is_answers, sorted(path.glob("*.jsonl"))) if path.is_dir() else [path])
    ]
    asked: list[Any] = []
    answers: dict[str, list[str]] = {}
    for name, file in zip(distinct_names(files), files, strict=True):
        rows = [row for _, row in read_objects(file)]
        chats = [chat_of(row) for row in rows]
        if answers and chats != asked:
            raise InputError(f"{file}: answers to other prompts than {files[0]}; give those to the same")
        asked = chats
        answers[name] = [row.get("answer") or f"{NO_ANSWER}{row.get('error', 'it is empty')})" for row in rows]
    return [side_by_side(asked, answers)]


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
