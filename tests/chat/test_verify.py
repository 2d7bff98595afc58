import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byte_level import make_tokenizer

from vikhr_fast.chat.verify import VerifyTokenizer, verify
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.export import ExportTokenizer, export, read_model
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.json_encoder import JsonEncoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def exported(trained: Path, tmp_path: Path) -> Path:
    """An export that a test may damage."""
    shutil.copytree(trained, tmp_path / "exported")
    return tmp_path / "exported"


def test_nothing_differs(exported: Path, corpus: tuple[Path, ...]) -> None:
    counts = verify(VerifyTokenizer(exported, text=corpus[:1], generated=600, chats=50))
    assert counts["differences"] == 0
    assert counts["documents"] > 10
    assert counts["generated"] == 600
    assert counts["chats"] == 50
    assert counts["tokens"] > 20_000


def change(exported: Path, name: str, old: str, new: str) -> None:
    text = (exported / name).read_text(encoding="utf-8")
    assert old in text
    (exported / name).write_text(text.replace(old, new), encoding="utf-8")


def swap_merges(exported: Path) -> None:
    values = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    merges = values["model"]["merges"]
    merges[10:200] = merges[10:200][::-1]
    (exported / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "order of merges": (swap_merges, "token"),
    "decoder": (lambda e: change(e, "tokenizer.json", '"start": 1', '"start": 0'), "decoded differently"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_first_difference_is_named(exported: Path, corpus: tuple[Path, ...], damage: str) -> None:
    change_it, complaint = DAMAGES[damage]
    change_it(exported)
    with pytest.raises(InputError, match=rf"^{re.escape(str(exported))}: .*document 1: .*{complaint}") as caught:
        verify(VerifyTokenizer(exported, text=corpus[:1]))
    assert "\n" not in str(caught.value)


def test_control_pieces_that_transformers_takes_for_text_are_found(exported: Path) -> None:
    values = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "<|im_end|>"]
    (exported / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    config = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    (exported / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"generated chat \d+: token \d+: transformers .*, vikhr_fast "):
        verify(VerifyTokenizer(exported, generated=0, chats=20))


def test_a_directory_that_is_no_tokenizer_is_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: no such file"):
        verify(VerifyTokenizer(tmp_path / "absent"))
    (exported / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(InputError, match=f"{re.escape(str(exported))}: transformers cannot load it"):
        verify(VerifyTokenizer(exported))


@pytest.fixture(params=["gpt-2", "llama-bpe", "qwen2"])
def byte_level(request: pytest.FixtureRequest, corpus: tuple[Path, ...], tmp_path: Path) -> Path:
    """A byte-level tokenizer with a chat template."""
    file = make_tokenizer(tmp_path / "base", [corpus[0].read_text(encoding="utf-8")[:50_000]], kind=request.param)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    file.with_name("tokenizer_config.json").write_text(json.dumps(config))
    output = tmp_path / "extended"
    size = JsonEncoder.from_file(file).vocab_size + 60
    extend_tokenizer(ExtendTokenizer(base=file.parent, input=corpus[:1], output=output, vocab_size=size))
    return output


def test_nothing_differs_in_a_byte_level_tokenizer(byte_level: Path, corpus: tuple[Path, ...]) -> None:
    counts = verify(VerifyTokenizer(byte_level, text=corpus[:1], generated=400, chats=50))
    assert (counts["differences"], counts["generated"], counts["chats"]) == (0, 400, 50)
    assert counts["tokens"] > 20_000


def test_a_byte_level_difference_is_named(byte_level: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = JsonEncoder.encode_batch

    def doubling(self: JsonEncoder, texts: Any, threads: int = 0) -> Any:
        return encode(self, [text.replace("я", "яя") for text in texts], threads)

    monkeypatch.setattr(JsonEncoder, "encode_batch", doubling)
    with pytest.raises(InputError, match=r"generated string \d+: token \d+: tokenizers \[.*\], vikhr_fast \["):
        verify(VerifyTokenizer(byte_level, generated=200, chats=0))


def test_what_is_neither_kind_has_nothing_to_be_compared_with(byte_level: Path) -> None:
    content = json.loads((byte_level / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (byte_level / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tokenizer\.json: not byte-level, and no tokenizer\.model beside it"):
        verify(VerifyTokenizer(byte_level))


def test_a_template_of_ones_own(trained: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    export(ExportTokenizer(trained, tmp_path / "out", chat_template=template))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template.read_text()
    verify(VerifyTokenizer(tmp_path / "out", generated=0, chats=50))
    template.write_text("{% for %}")
    with pytest.raises(InputError, match=r"template\.jinja: line 1: not a Jinja template"):
        export(ExportTokenizer(trained, tmp_path / "other", chat_template=template))
    assert not (tmp_path / "other").exists()


def test_chats_that_the_template_refuses_are_left_out_and_counted(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "template.jinja"
    refusing = "{% if 'я' in m.content %}{{ raise_exception('a letter') }}{% endif %}"
    said = "{{ m.content }}<|im_end|>{% endfor %}"
    template.write_text(f"{{{{ bos_token }}}}{{% for m in messages %}}{refusing}{said}")
    export(ExportTokenizer(trained, tmp_path / "out", chat_template=template))
    counts = verify(VerifyTokenizer(tmp_path / "out", generated=0, chats=300))
    assert counts["chats"] + counts["chats_refused"] == 300
    assert min(counts["chats"], counts["chats_refused"]) > 10
    _, line = caplog.messages  # the first says that the template has no generation block
    assert "left out, and so is any other that is refused: " in line
    assert "refuses a chat of" in line
    assert "a letter" in line
    assert verify(VerifyTokenizer(tmp_path / "out", generated=0, chats=257))["chats"] > 0  # whatever the last batch is


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (5, "chat_template: neither a text nor a list"),
        ([{"name": "other", "template": "a"}], "chat_template: neither a text nor a list"),
        ([{"name": "default", "template": 5}], "chat_template: neither a text nor a list"),
        (["a"], "transformers cannot load it"),
        ([{"name": "default", "template": "{{ 1/0 }}"}], "refuses a chat of .*division by zero; mend the template"),
    ],
)
def test_a_template_that_is_none_is_named(exported: Path, template: object, reason: str) -> None:
    (exported / "chat_template.jinja").unlink()
    config = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    (exported / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    with pytest.raises(InputError, match=rf"^{re.escape(str(exported))}(/\S+)?: {reason}") as caught:
        verify(VerifyTokenizer(exported, generated=0, chats=3))
    assert "\n" not in str(caught.value)


def test_gguf_reads_the_same_pieces_and_scores(trained: Path) -> None:
    """The vocabulary reader of llama.cpp's converter."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    model = read_model(trained / "tokenizer.model")
    tokens = list(gguf.vocab.SentencePieceVocab(trained).all_tokens())
    assert [(text.decode(), score) for text, score, _ in tokens] == [(p.piece, p.score) for p in model.pieces]
    kinds = {1: "NORMAL", 2: "UNKNOWN", 3: "CONTROL", 6: "BYTE"}
    assert [kind.name for _, _, kind in tokens] == [kinds[p.type] for p in model.pieces]
    special = gguf.SpecialVocab(trained, load_merges=False, n_vocab=len(model.pieces))
    assert special.special_token_ids == {"bos": 1, "eos": 2, "unk": 0}
    assert special.chat_template == (trained / "chat_template.jinja").read_text()
