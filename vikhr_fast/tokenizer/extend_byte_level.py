"""A byte-level BPE base that grows: its merges go on, on new text, at the end of their list.

Words are the base's own pre-tokens, by their bytes. Ids and merges of the base stay as they are, and `tokenizer.json`
gets a merge and a token more for each new token.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vikhr_fast._native import ByteExtender, WordCounts
from vikhr_fast.data.read import named
from vikhr_fast.data.text_lines import line_bytes
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, json_text, refuse_existing, sha256_of, write_json, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.tokenizer.byte_level import merge_pairs, spells_bytes, split_kind, token_bytes, token_text
from vikhr_fast.tokenizer.chat_template import CHAT_TEMPLATES, read_template
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.files import ADDED_TOKENS, CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER_CONFIG, TOKENIZER_JSON
from vikhr_fast.tokenizer.json_encoder import JsonEncoder, library_errors
from vikhr_fast.tokenizer.llama_cpp import PRE_TOKENIZERS
from vikhr_fast.tokenizer.new_pieces import MAX_CHARACTERS, REPORT_NAME, learn_pieces, scripts
from vikhr_fast.tokenizer.special_tokens import TOKENIZER_CLASS
from vikhr_fast.tokenizer.train import Learning, control_pieces
from vikhr_fast.tokenizer.word_counts import count_words

_ADVISED = 12_000  # new tokens, in an error's advice
_TEXT_CHARACTERS = 1 << 20  # split at once: the list of their words takes 100 times the memory
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def extend_byte_level(options: Learning, file: Path, compare: Sequence[Path]) -> dict[str, Any]:
    """Learns new tokens and writes `options.output`, complete or not at all.

    Args:
        options: of the command.
        file: the base's tokenizer.json; the files beside it are carried over.
        compare: text to count the words in that fall into other tokens than before.

    Returns:
        The report that is also written to extend.json: numbers of `base` ids and of `control` and `learnt` tokens,
        which follow each other in this order; how many of those learnt are `parts` of a character; `rarest`, the
        occurrences of the last one; `unreachable` ones; SHA-256 of the base; `llama_cpp`, the name of the pre-tokenizer
        there, or None; and `compared`, as `extend_tokenizer` has it.

    Raises:
        InputError: an impossible option, unreadable or empty input, a base that is no byte-level BPE tokenizer, a
            vocabulary size that leaves no room or that the text cannot fill.
    """
    wanted = control_pieces(options)
    if options.character_coverage != Learning.character_coverage:
        given = f"--character-coverage {options.character_coverage}"
        raise InputError(f"{given}: a byte-level base spells rare characters in bytes; leave it out")
    refuse_existing(options.output)
    base = _Base.from_file(file)
    control = [name for name in wanted if name not in base.special]
    if taken := [name for name in control if name in base.vocabulary or name in base.words]:
        raise InputError(f"{file}: {', '.join(taken)}: a token of text there, so no control token; choose another")
    _refuse_found_in_text(base, [*control, *(name for name in base.special if name not in base.vocabulary)])
    room = options.vocab_size - base.size - len(control)
    if room < 1:
        needed = f"the base has {base.size} ids, control tokens take {len(control)} more"
        advice = f"--vocab-size {options.vocab_size - room + _ADVISED} adds {_ADVISED:,} tokens"
        raise InputError(f"{file}: vocab_size {options.vocab_size}: {needed}; {advice}")
    words = count_words(
        options.input,
        options.weights,
        options.text_field,
        options.max_words,
        line_bytes(options),
        lambda counts, texts: add_pretokens(counts, base, texts),
        base.is_normal_form,
    )
    learnt = learn_pieces(_extender(base, words).learn, room)
    if len(learnt) < room:
        most = options.vocab_size - room + len(learnt)
        size = f"{named(options.input)}: vocab_size {options.vocab_size}"
        raise InputError(f"{size}: too little text for it; give more, or at most --vocab-size {most}")

    control_ids = {name: base.size + place for place, name in enumerate(control)}
    first = base.size + len(control)
    learnt_ids = {left + right: first + place for place, (left, right, _) in enumerate(learnt)}
    llama_cpp = None if base.kind is None else PRE_TOKENIZERS[base.kind]
    if llama_cpp is None:
        logger.warning(f"{file}: llama.cpp isn't known to have its pre-tokenizer, so the model may have no GGUF form")
    with atomic_directory(options.output) as directory:
        new_file = directory / TOKENIZER_JSON
        write_json(new_file, _extended(base, control_ids, learnt_ids, [(left, right) for left, right, _ in learnt]))
        _carry_over(file.parent, directory, control_ids)
        report = {
            "base": base.size,
            "control": len(control),
            "learnt": len(learnt),
            "parts": sum(not _is_text(token) for token in learnt_ids),
            "rarest": learnt[-1][2],
            "unreachable": len(unreachable_tokens(new_file, learnt_ids)),
            "base_sha256": sha256_of(file),
            "llama_cpp": llama_cpp,
        }
        if compare:
            before, after = measure([file, new_file], compare)
            figures = {name: after[name] for name in ("words", "words_changed")}
            report["compared"] = {**figures, "tokens_before": before["tokens"], "tokens_after": after["tokens"]}
        write_json(directory / REPORT_NAME, report)
    return report


@dataclass(frozen=True)
class _Base:
    """A byte-level BPE tokenizer."""

    file: Path
    tokenizer: Any
    """The library's."""
    vocabulary: dict[str, int]
    """Ids by token, without those of `special` and `words` that the file adds to it."""
    special: dict[str, int]
    """Added tokens that text never becomes, with their ids."""
    words: dict[str, int]
    """Other added tokens, which are found in text before it is split."""
    kind: str | None
    """How it splits texts, see `byte_level.split_kind`."""

    @classmethod
    def from_file(cls, file: Path) -> "_Base":
        tokenizer = JsonEncoder.from_file(file).tokenizer
        model, advice = tokenizer.model, "choose a base that is byte-level BPE"
        for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if value := getattr(model, name):
                raise InputError(f"{file}: {name} is {value}, must be absent; {advice}")
        if not spells_bytes(tokenizer.pre_tokenizer):
            kind = "none" if tokenizer.pre_tokenizer is None else type(tokenizer.pre_tokenizer).__name__
            raise InputError(f"{file}: its pre-tokenizer ({kind}) doesn't spell words by their bytes; {advice}")
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        if len(set(tokens.values())) < len(tokens):
            raise InputError(f"{file}: damaged: two tokens have one id; fetch it again")
        added = tokenizer.get_added_tokens_decoder().items()
        special, words = (
            {token.content: id_ for id_, token in added if token.special == wanted} for wanted in (True, False)
        )
        return cls(file, tokenizer, vocabulary, special, words, split_kind(tokenizer.pre_tokenizer))

    @property
    def size(self) -> int:
        """The number that all ids are below; some vocabularies have gaps."""
        return 1 + max([*self.vocabulary.values(), *self.special.values(), *self.words.values()])

    @property
    def is_normal_form(self) -> bool:
        """Whether texts are brought to Unicode's composed form before they are split."""
        normalizer = self.tokenizer.normalizer
        return normalizer is not None and normalizer.normalize_str("и\u0306") == "й"


def _refuse_found_in_text(base: _Base, special: list[str]) -> None:
    """Raises InputError where text would become a special token that enters the vocabulary."""
    for name in special if base.tokenizer.model.ignore_merges else ():
        content = token_bytes(name)
        if content is not None and _is_text(content) and _stands_alone(base, content):
            reason = "its text would be encoded to its id, as the base keeps words whole that are tokens"
            raise InputError(f"{base.file}: special token {name!r}: {reason}; choose another")


def add_pretokens(counts: WordCounts, base: _Base, texts: Sequence[str]) -> None:
    """Counts the words that the base's normalizer and pre-tokenizer make of texts, by their bytes."""
    normalizer, pre_tokenizer = base.tokenizer.normalizer, base.tokenizer.pre_tokenizer
    with library_errors(f"{base.file}: cannot split a text", "fetch it again"):
        parts = _parts(base, texts)
        normal = list(parts if normalizer is None else map(normalizer.normalize_str, parts))
        if base.kind is not None:
            return counts.add_split(base.kind, normal)
        words = Counter(word for part in normal for word, _ in pre_tokenizer.pre_tokenize_str(part))
    found: list[tuple[bytes, int]] = []
    for word, count in words.items():
        if (content := token_bytes(word)) is None:
            reason = f"its pre-tokenizer makes {word!r}, which has characters that stand for no byte"
            raise InputError(f"{base.file}: {reason}; choose a base that is byte-level BPE")
        found.append((content, count))
    return counts.add_words(found)


def _parts(base: _Base, texts: Sequence[str]) -> Iterator[str]:
    """What stands between added words, in parts of bounded size."""
    between = "|".join(map(re.escape, sorted(filter(None, base.words), key=len, reverse=True)))
    for text in texts:
        for part in re.split(between, text) if between else [text]:
            yield from (part[start : start + _TEXT_CHARACTERS] for start in range(0, len(part), _TEXT_CHARACTERS))


def _extender(base: _Base, words: WordCounts) -> ByteExtender:
    """Learns what goes on after the merges of the base."""
    names = dict.fromkeys([*base.vocabulary, *base.special, *base.words])
    spelt = {name: content for name in names if (content := token_bytes(name)) is not None}
    places = {name: place for place, name in enumerate(spelt)}
    pairs = [(left, right) for left, right in _merges(base) if left in places and right in places]
    extender = ByteExtender(
        list(spelt.values()),
        [(places[left], places[right]) for left, right in pairs],
        scripts({chr(code) for code, _ in words.characters()}),
        MAX_CHARACTERS,
        base.tokenizer.model.ignore_merges,
    )
    extender.add_words(words)
    return extender


def _merges(base: _Base) -> list[tuple[str, str]]:
    """The base's merges in order; of those that stand twice the library takes the last."""
    pairs = merge_pairs(read_json(base.file)["model"])
    return list(dict.fromkeys(reversed(pairs)))[::-1]


def _extended(
    base: _Base, control: dict[str, int], learnt: dict[bytes, int], merges: list[tuple[bytes, bytes]]
) -> dict[str, Any]:
    """The base's tokenizer.json with what is new."""
    content = read_json(base.file)
    model = content["model"]
    # The library numbers added tokens that the vocabulary lacks anew, after all that it has.
    added = base.special | base.words | control
    model["vocab"] |= {name: id_ for name, id_ in added.items() if name not in model["vocab"]}
    model["vocab"] |= {token_text(token): id_ for token, id_ in learnt.items()}
    are_texts = bool(model["merges"]) and isinstance(model["merges"][0], str)
    pairs = [[token_text(left), token_text(right)] for left, right in merges]
    model["merges"] += [" ".join(pair) for pair in pairs] if are_texts else pairs
    tokens = [{"id": id_, "content": name, **_SPECIAL} for name, id_ in control.items()]
    content["added_tokens"] = [*(content.get("added_tokens") or ()), *tokens]
    return content


def _carry_over(base: Path, directory: Path, control: dict[str, int]) -> None:
    """Writes the files beside tokenizer.json, with the new control tokens where they list such.

    The class is the one that takes tokenizer.json as it is: of others transformers 5 makes the pre-tokenizer anew.
    """
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, CHAT_TEMPLATE):
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    config_file, added_file, template = (directory / name for name in (TOKENIZER_CONFIG, ADDED_TOKENS, CHAT_TEMPLATE))
    config = (read_json(config_file) if config_file.is_file() else {}) | {"tokenizer_class": TOKENIZER_CLASS}
    if control and isinstance(config.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"] |= {str(id_): {"content": name, **_SPECIAL} for name, id_ in control.items()}
    write_json(config_file, config)
    if control and added_file.is_file():
        write_json(added_file, read_json(added_file) | control)
    if not template.is_file() and not config.get("chat_template"):
        write_text(template, read_template(CHAT_TEMPLATES["chatml"]))


def unreachable_tokens(file: Path, ids: dict[bytes, int]) -> list[bytes]:
    """The tokens that no text is ever encoded to.

    A token that the pre-tokenizer lets stand alone is reachable exactly if its text is encoded as it. One that it
    doesn't, or that is no text, stands inside words: there it is what the merges make of its bytes.

    Args:
        file: the tokenizer.json.
        ids: of the tokens to look at, by their bytes.
    """
    import tokenizers

    base = _Base.from_file(file)
    alone = [token for token in ids if _is_text(token) and _stands_alone(base, token)]
    inside = list(ids.keys() - set(alone))
    steps = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor"))
    merges_only = tokenizers.Tokenizer.from_str(json_text({**read_json(file), **steps, "added_tokens": []}))
    found = [
        row.ids
        for row in base.tokenizer.encode_batch_fast([token.decode() for token in alone], add_special_tokens=False)
    ]
    found += [row.ids for row in merges_only.encode_batch_fast(list(map(token_text, inside)), add_special_tokens=False)]
    return [token for token, row in zip([*alone, *inside], found, strict=True) if row != [ids[token]]]


def _stands_alone(base: _Base, token: bytes) -> bool:
    """Whether the pre-tokenizer makes one word of a token's text."""
    words = WordCounts(1000)
    add_pretokens(words, base, [token.decode()])
    return len(words) == 1 and words.bytes == len(token)


def _is_text(content: bytes) -> bool:
    return content.decode(errors="ignore").encode() == content
