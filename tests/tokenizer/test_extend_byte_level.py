"""Extension of byte-level bases: what it promises about ids, segmentation and reachability, and what it refuses."""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from byte_level import STEPS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import JsonEncoder, extend_byte_level
from vikhr_fast.tokenizer.byte_level import token_bytes, token_text
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer

CHAT = ["<|im_start|>", "<|im_end|>"]
LEARNT = 300
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def english(corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of 500 tokens, learnt from English."""
    texts = corpus[-1].read_text(encoding="utf-8").split("\n\n")
    return make_tokenizer(tmp_path_factory.mktemp("english"), texts, vocab_size=500)


def edited(file: Path, directory: Path, *edits: Edit) -> Path:
    """A copy of a tokenizer and the files beside it, changed."""
    directory.mkdir()
    content = json.loads(file.read_text())
    for edit in edits:
        edit(content)
    (directory / file.name).write_text(json.dumps(content))
    config = file.with_name("tokenizer_config.json")
    (directory / config.name).write_bytes(config.read_bytes())
    return directory / file.name


@pytest.fixture
def options(english: Path, corpus: tuple[Path, ...], tmp_path: Path) -> ExtendTokenizer:
    return ExtendTokenizer(
        base=english.parent, input=corpus[:1], output=tmp_path / "out", vocab_size=500 + len(CHAT) + LEARNT
    )


@pytest.fixture(scope="module", params=STEPS)
def extended(
    request: pytest.FixtureRequest, english: Path, corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, dict[str, Any]]:
    """By the kind of pre-tokenizer: the base's file, the extended one, and the report."""
    directory = tmp_path_factory.mktemp(request.param)
    base = edited(english, directory / "base", lambda content: content.update(STEPS[request.param]))
    options = ExtendTokenizer(
        base=base, input=corpus[:1], output=directory / "out", compare=corpus[-1:], vocab_size=502 + LEARNT
    )
    return request.param, base, directory / "out" / "tokenizer.json", extend_tokenizer(options)


def content_of(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def new_tokens(base: Path, file: Path) -> dict[bytes, int]:
    """Ids of what was learnt, by the bytes."""
    old, names = content_of(base)["model"]["vocab"], {token["content"] for token in content_of(file)["added_tokens"]}
    added = {name: id_ for name, id_ in content_of(file)["model"]["vocab"].items() if name not in {*old, *names}}
    return {token_bytes(name) or b"": id_ for name, id_ in added.items()}


@cache
def encoder_of(file: Path) -> JsonEncoder:
    return JsonEncoder.from_file(file)


def ids_of(file: Path, texts: list[str]) -> list[list[int]]:
    ids, offsets = encoder_of(file).encode_batch(texts)
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


def test_the_base_stays_and_what_is_new_comes_after(extended: tuple[str, Path, Path, dict[str, Any]]) -> None:
    _, base, file, report = extended
    old, new = content_of(base), content_of(file)
    assert {name: new["model"]["vocab"][name] for name in old["model"]["vocab"]} == old["model"]["vocab"]
    assert new["model"]["merges"][: len(old["model"]["merges"])] == old["model"]["merges"]
    assert new["added_tokens"][:-2] == old["added_tokens"]
    assert [(token["content"], token["id"], token["special"]) for token in new["added_tokens"][-2:]] == [
        ("<|im_start|>", 500, True),
        ("<|im_end|>", 501, True),
    ]
    for content in (old, new):
        content.pop("added_tokens")
        content["model"].pop("vocab")
        content["model"].pop("merges")
    assert new == old
    learnt = new_tokens(base, file)
    assert list(learnt.values()) == list(range(502, 502 + LEARNT))
    assert (report["base"], report["control"], report["learnt"]) == (500, 2, LEARNT)
    assert json.loads(file.with_name("extend.json").read_text()) == report
    for token in learnt:
        text = token.removeprefix(b" ").decode(errors="replace")
        assert re.fullmatch(r"[а-яё]+|[А-ЯЁа-яё]+|[^\w\s]+|[a-zA-Z]+|\ufffd+", text), token
        assert len(text) <= 16
    assert report["parts"] == sum(b"\xef\xbf\xbd" in token.decode(errors="replace").encode() for token in learnt)


def test_every_new_token_is_reachable(extended: tuple[str, Path, Path, dict[str, Any]]) -> None:
    kind, base, file, report = extended
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    assert report["unreachable"] == 0
    for token, id_ in new_tokens(base, file).items():
        try:
            texts = [token.decode()]
        except UnicodeDecodeError:  # a part of a character: behind its space and before every other rest of it
            rest = token.removeprefix(b" ")
            texts = [
                text
                for code in range(0x80, 0x3000)
                if rest in (text := token[: len(token) - len(rest)].decode() + chr(code)).encode()
            ]
        assert any(id_ in tokenizer.encode(text).ids for text in texts), (kind, token)


def test_texts_are_shorter_and_english_stays(
    extended: tuple[str, Path, Path, dict[str, Any]], corpus: tuple[Path, ...]
) -> None:
    _, base, file, report = extended
    before, after = encoder_of(base), encoder_of(file)
    text = corpus[1].read_text(encoding="utf-8")
    assert len(after.encode(text)) < 0.4 * len(before.encode(text))
    words = [f" {word}" for word in corpus[-1].read_text(encoding="utf-8").split()]
    changed = sum(old != new for old, new in zip(ids_of(base, words), ids_of(file, words), strict=True))
    assert report["compared"]["words_changed"] == changed / len(words) < 0.02
    assert report["compared"]["words"] == len(words)
    assert 0 <= report["compared"]["tokens_before"] - report["compared"]["tokens_after"] < 0.02 * len(words)


@cache
def ranks_of(file: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The vocabulary of a file, and its merges with their places."""
    model = content_of(file)["model"]
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return model["vocab"], {pair: place for place, pair in enumerate(pairs)}


def plain_ids(file: Path, word: str) -> list[int]:
    """Ids of a word from scratch: always the first merge of the list, the leftmost of its places."""
    vocabulary, ranks = ranks_of(file)
    parts = list(word)
    while found := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
        place = min(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [vocabulary[part] for part in parts]


TEXTS = st.text("аобвенст лЁ\u0306и1 2.,-\n\U0001f600日's", max_size=40) | st.text(max_size=20)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_the_merges_in_their_order(
    extended: tuple[str, Path, Path, dict[str, Any]], text: str
) -> None:
    _, base, file, _ = extended
    library = encoder_of(file).tokenizer
    normal = text if library.normalizer is None else library.normalizer.normalize_str(text)
    words = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(normal)]
    ids = encoder_of(file).encode(text).tolist()
    assert ids == [id_ for word in words for id_ in plain_ids(file, word)]
    if all(id_ < 500 for id_ in ids):
        assert ids == encoder_of(base).encode(text).tolist()


def test_a_text_without_new_tokens_is_segmented_as_before(
    extended: tuple[str, Path, Path, dict[str, Any]], corpus: tuple[Path, ...]
) -> None:
    _, base, file, _ = extended
    texts = [text for source in corpus for text in re.findall(r"\s?\S+", source.read_text(encoding="utf-8"))[:20_000]]
    pairs = list(zip(*(ids_of(one, list(dict.fromkeys(texts))) for one in (base, file)), strict=True))
    kept = [(before, after) for before, after in pairs if max(after, default=0) < 500]
    assert 1000 < len(kept) < len(pairs) - 1000
    assert all(before == after for before, after in kept)


def test_same_input_gives_the_same_bytes(options: ExtendTokenizer, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    extend_tokenizer(replace(options, input=corpus[:2]))
    extend_tokenizer(replace(options, input=corpus[1::-1], output=tmp_path / "again"))
    first, again = ({f.name: f.read_bytes() for f in d.iterdir()} for d in (options.output, tmp_path / "again"))
    assert first == again


def test_added_tokens_keep_their_ids_where_the_vocabulary_lacks_them(
    english: Path, options: ExtendTokenizer, tmp_path: Path
) -> None:
    """As in Llama 3: `tokenizers` would give them ids after all of a vocabulary that has grown."""

    def move_out(content: dict[str, Any]) -> None:
        model, names = content["model"], [token["content"] for token in content["added_tokens"]]
        kept = [name for name in model["vocab"] if name not in names]
        model["vocab"] = {name: id_ for id_, name in enumerate(kept)}
        for place, token in enumerate(content["added_tokens"]):
            token["id"] = len(kept) + place

    base = edited(english, tmp_path / "base", move_out)
    assert encoder_of(base).tokenizer.token_to_id("<|end|>") == 499
    extend_tokenizer(replace(options, base=base))
    new = JsonEncoder.from_file(options.output / "tokenizer.json")
    assert [new.tokenizer.token_to_id(name) for name in ("<|begin|>", "<|end|>", *CHAT)] == [498, 499, 500, 501]
    assert (new.bos_id, new.eos_id) == (498, 499)
    assert new.tokenizer.encode("<|end|>").ids != [499]  # text here; to the library by default it is the token
    assert tokenizers.Tokenizer.from_file(str(options.output / "tokenizer.json")).encode("<|end|>").ids == [499]


def test_gaps_in_the_ids_stay(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    def spread(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary |= {name: id_ + 1000 for name, id_ in vocabulary.items() if id_ >= 450}

    base = edited(english, tmp_path / "base", spread)
    report = extend_tokenizer(replace(options, base=base, vocab_size=1502 + LEARNT))
    assert (report["base"], report["learnt"]) == (1500, LEARNT)
    assert min(new_tokens(base, options.output / "tokenizer.json").values()) == 1502
    assert JsonEncoder.from_file(options.output / "tokenizer.json").vocab_size == 1502 + LEARNT


def test_merges_keep_their_form(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    def as_texts(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        # "#version" is no merge, and one that stands twice has its last place
        merges[:] = ["#version: 0.2", " ".join(merges[5]), *map(" ".join, merges)]

    base = edited(english, tmp_path / "base", as_texts)
    extend_tokenizer(options)
    extend_tokenizer(replace(options, base=base, output=tmp_path / "texts"))
    pairs, texts = (content_of(tmp_path / name / "tokenizer.json") for name in ("out", "texts"))
    assert [" ".join(pair) for pair in pairs["model"]["merges"]] == texts["model"]["merges"][2:]
    assert pairs["model"]["vocab"] == texts["model"]["vocab"]


def test_a_byte_without_a_token_is_in_no_new_one(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    missing = "а".encode()[1:]  # of SmolLM2's vocabulary 21 are

    def remove(content: dict[str, Any]) -> None:
        name, model = token_text(missing), content["model"]
        model["merges"] = [pair for pair in model["merges"] if name not in "".join(pair)]
        model["vocab"] = {token: id_ for token, id_ in model["vocab"].items() if name not in token}

    base = edited(english, tmp_path / "base", remove)
    report = extend_tokenizer(replace(options, base=base))
    learnt = new_tokens(base, options.output / "tokenizer.json")
    assert report["unreachable"] == 0
    assert len(learnt) > 200
    assert not [token for token in learnt if missing in token]


def test_words_that_are_tokens_are_kept_whole(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    """With `ignore_merges`, a word in the vocabulary needs no merges; " не" is one here, and teaches nothing."""
    word = token_text(" не".encode())

    def keep(content: dict[str, Any]) -> None:
        content["model"]["ignore_merges"] = True
        content["model"]["vocab"][word] = 500

    base = edited(english, tmp_path / "base", keep)
    report = extend_tokenizer(replace(options, base=base, vocab_size=503 + LEARNT))
    content = content_of(options.output / "tokenizer.json")
    assert report["unreachable"] == 0
    assert word not in {"".join(pair) for pair in content["model"]["merges"]}
    assert JsonEncoder.from_file(options.output / "tokenizer.json").encode(" не").tolist() == [500]


def test_nothing_is_learnt_across_added_words(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("гора лес гора лесгорагора <|end|>лес " * 50)
    word = {"id": 500, "content": "ес", "single_word": False, "lstrip": False, "rstrip": False, "special": False}

    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**word, "normalized": False})

    base = edited(english, tmp_path / "base", add)
    for name, source, size in (("plain", english, 516), ("added", base, 514)):
        few = replace(options, base=source, input=(tmp_path / "text.txt",), output=tmp_path / name, vocab_size=size)
        extend_tokenizer(few)
        learnt = [token.decode(errors="replace") for token in new_tokens(source, tmp_path / name / "tokenizer.json")]
        assert ("ес" in "".join(learnt)) is (name == "plain"), learnt
        assert "гора" in learnt


def test_texts_in_another_normal_form(
    english: Path,
    options: ExtendTokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "йогурт ёлка " * 20 + "\n\n" + "съезд объём " * 20
    (tmp_path / "nfc.txt").write_text(text)
    (tmp_path / "nfd.txt").write_text(unicodedata.normalize("NFD", text))
    for kind, are_equal in (("qwen2", True), ("llama-bpe", False)):
        base = edited(english, tmp_path / kind, lambda content, kind=kind: content.update(STEPS[kind]))
        for form in ("nfc", "nfd"):
            one = replace(
                options, base=base, input=(tmp_path / f"{form}.txt",), output=tmp_path / kind / form, vocab_size=520
            )
            extend_tokenizer(one)
        first, second = ((tmp_path / kind / form / "tokenizer.json").read_bytes() for form in ("nfc", "nfd"))
        assert (first == second) is are_equal
        assert ("not in NFC" in caplog.text) is not are_equal


def test_files_beside_it_know_the_control_tokens(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    base = edited(english, tmp_path / "base").parent
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "added_tokens_decoder": {
            str(id_): {"content": name, **special} for id_, name in enumerate(["<|begin|>", "<|end|>"])
        },
        "chat_template": "{{ messages }}",
    }
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "added_tokens.json").write_text('{"<|begin|>": 0}')
    (base / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    extend_tokenizer(replace(options, base=base, control=("<|tool|>",), reserved=1, vocab_size=504 + LEARNT))
    names = {"<|im_start|>": 500, "<|im_end|>": 501, "<|tool|>": 502, "<|reserved_0|>": 503}
    written = json.loads((options.output / "tokenizer_config.json").read_text())
    added = {token["content"]: int(id_) for id_, token in written.pop("added_tokens_decoder").items()}
    assert added == {"<|begin|>": 0, "<|end|>": 1, **names}
    assert written == {name: value for name, value in config.items() if name != "added_tokens_decoder"}
    assert json.loads((options.output / "added_tokens.json").read_text()) == {"<|begin|>": 0, **names}
    assert (options.output / "special_tokens_map.json").read_bytes() == (base / "special_tokens_map.json").read_bytes()
    assert not (options.output / "chat_template.jinja").exists()  # it is in the configuration

    again = replace(options, base=options.output, output=tmp_path / "again", vocab_size=600 + LEARNT)
    assert extend_tokenizer(again)["control"] == 0  # the chat tokens are there already


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_transformers_reads_the_same_ids(
    kind: str, english: Path, options: ExtendTokenizer, corpus: tuple[Path, ...], tmp_path: Path
) -> None:
    """Also where the base has a class that transformers makes anew, with a pre-tokenizer of its own."""
    from transformers import AutoTokenizer

    base = edited(english, tmp_path / "base", lambda content: content.update(STEPS["llama-bpe"])).parent
    config = {"tokenizer_class": kind, "bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<|end|>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    extend_tokenizer(replace(options, base=base))
    loaded = AutoTokenizer.from_pretrained(str(options.output))
    text = corpus[1].read_text(encoding="utf-8")[:20_000] + " (the END)\n\n \r\n(and THE'S end)"
    ids = JsonEncoder.from_file(options.output / "tokenizer.json").encode(text).tolist()
    assert loaded(text, add_special_tokens=False).input_ids == ids
    assert loaded.decode(ids) == text
    chat = loaded.apply_chat_template([{"role": "user", "content": "Да"}], tokenize=False)
    assert "<|im_start|>user\nДа<|im_end|>" in chat  # ChatML, as the base has no template
    assert loaded(chat, add_special_tokens=False).input_ids.count(501) == chat.count("<|im_end|>")


def test_llama_cpps_name_of_the_pre_tokenizer(
    extended: tuple[str, Path, Path, dict[str, Any]],
) -> None:
    kind, _, _, report = extended
    assert report["llama_cpp"] == kind


def test_a_pre_tokenizer_that_llama_cpp_lacks_is_said(
    english: Path,
    options: ExtendTokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["add_prefix_space"] = True

    base = edited(english, tmp_path / "base", change)
    report = extend_tokenizer(replace(options, base=base))
    assert (report["llama_cpp"], report["unreachable"]) == (None, 0)
    assert "llama.cpp isn't known to have its pre-tokenizer" in caplog.text


def no_steps(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = None


def added(content: dict[str, Any], *tokens: str, special: bool = False) -> None:
    """Added tokens that the vocabulary lacks, under the next ids."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": special}
    first = 1 + max(content["model"]["vocab"].values())
    content["added_tokens"] += [{"id": first + place, "content": own, **flags} for place, own in enumerate(tokens)]


def number_anew(content: dict[str, Any]) -> None:
    """The library numbers added tokens by how many there are, so that one has the id behind a gap."""
    content["model"]["vocab"]["zq"] = 1 + max(content["model"]["vocab"].values()) + 1
    added(content, "foo", "bar")


def take_special_words_whole(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True
    added(content, "PAD", special=True)


REFUSED: dict[str, Edit] = {
    "a WordLevel tokenizer, only BPE": lambda content: content.update(
        model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    ),
    r"its pre-tokenizer \(none\) doesn't spell words by their bytes": no_steps,
    r"its pre-tokenizer \(Metaspace\) doesn't spell words": lambda content: content.update(
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    ),
    "'▁.*', which has characters that stand for no byte": lambda content: content.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                content["pre_tokenizer"],
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        }
    ),
    "end_of_word_suffix is </w>, must be absent": lambda content: content["model"].update(end_of_word_suffix="</w>"),
    "dropout is 0.5, must be absent": lambda content: content["model"].update(dropout=0.5),
    "two tokens have one id": lambda content: content["model"]["vocab"].update(a=content["model"]["vocab"]["b"]),
    "two tokens have one id; fetch it again": number_anew,
    "special token 'PAD': its text would be encoded to its id": take_special_words_whole,
    "no tokenizer that can be read": lambda content: content["model"]["merges"].append(["a", "never"]),
    "no tokenizer that can be read: ": lambda content: content["model"].update(vocab=[1]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_byte_level_base_is_one_line(
    said: str, english: Path, options: ExtendTokenizer, tmp_path: Path
) -> None:
    base = edited(english, tmp_path / "base", REFUSED[said])
    with pytest.raises(InputError, match=rf"^{re.escape(str(base))}: .*{said}"):
        extend_tokenizer(replace(options, base=base))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_impossible_options_are_named(options: ExtendTokenizer, tmp_path: Path) -> None:
    advice = r"the base has 500 ids, control tokens take 2 more; --vocab-size 12502 adds 12,000 tokens$"
    with pytest.raises(InputError, match=rf"tokenizer\.json: vocab_size 502: {advice}"):
        extend_tokenizer(replace(options, vocab_size=502))
    with pytest.raises(InputError, match=r"^--character-coverage 0\.99: a byte-level base spells rare characters"):
        extend_tokenizer(replace(options, character_coverage=0.99))
    with pytest.raises(InputError, match=r"tokenizer\.json: th: a token of text there, so no control token"):
        extend_tokenizer(replace(options, control=("th",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: neither tokenizer\.model nor tokenizer\.json in it"):
        extend_tokenizer(replace(options, base=tmp_path / "empty"))
    (tmp_path / "few.txt").write_text("лес лесом\n\nлес гор горой 12 12")
    few = replace(options, input=(tmp_path / "few.txt",), vocab_size=600)
    with pytest.raises(
        InputError, match=r"few\.txt: vocab_size 600: too little text .* at most --vocab-size"
    ) as caught:
        extend_tokenizer(few)
    assert not options.output.exists()
    most = int(str(caught.value).split()[-1])
    assert extend_tokenizer(replace(few, vocab_size=most))["rarest"] == 2
    with pytest.raises(InputError, match="exists already"):
        extend_tokenizer(options)


def test_text_that_is_none_is_refused(options: ExtendTokenizer, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(InputError, match=r"binary\.txt: line 1, byte 0: invalid UTF-8|binary\.txt: .*UTF-8"):
        extend_tokenizer(replace(options, input=(tmp_path / "binary.txt",)))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty\.txt"):
        extend_tokenizer(replace(options, input=(tmp_path / "empty.txt",)))
    assert not options.output.exists()


def test_a_huge_word_is_learnt_from(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    (tmp_path / "huge.txt").write_text("я" * 1_200_000)
    report = extend_tokenizer(replace(options, input=(tmp_path / "huge.txt",), vocab_size=505))
    assert list(new_tokens(english, options.output / "tokenizer.json")) == [b"\xd1\x8f", "яя".encode(), "яяяя".encode()]
    assert report["unreachable"] == 0


def test_an_interrupted_extension_leaves_nothing(
    options: ExtendTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert list(tmp_path.glob(".out.*/tokenizer.json"))
        raise KeyboardInterrupt

    monkeypatch.setattr(extend_byte_level, "unreachable_tokens", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extend_tokenizer(options)
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_merges_do_not_reach_are_found(english: Path, options: ExtendTokenizer, tmp_path: Path) -> None:
    """The list that is empty for an extension is not for tokens that were just appended."""
    extend_tokenizer(options)
    learnt = new_tokens(english, options.output / "tokenizer.json")

    def forget(content: dict[str, Any]) -> None:
        content["model"]["merges"].pop()

    file = edited(options.output / "tokenizer.json", tmp_path / "less", forget)
    assert extend_byte_level.unreachable_tokens(file, learnt) == [list(learnt)[-1]]
