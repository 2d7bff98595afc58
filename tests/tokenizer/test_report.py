import json
import re
from pathlib import Path

import pytest
import sentencepiece
from byte_level import make_tokenizer

from vikhr_fast.errors import InputError
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.report import EXAMPLE, ReportTokenizers, report_tokenizers


@pytest.fixture(scope="module")
def extended(trained: Path, corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("extended") / "longer"
    extend_tokenizer(ExtendTokenizer(base=trained, input=corpus[:1], output=directory, vocab_size=3300))
    return directory


def test_figures_are_those_of_their_definitions(trained: Path, corpus: tuple[Path, ...]) -> None:
    (found,) = measure([trained / "tokenizer.model"], corpus[:2])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    documents = [
        paragraph
        for file in corpus[:2]
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8").strip("\n"))
    ]
    ids = [index for text in documents for index in processor.encode(text)]
    assert found["tokens"] == len(ids)
    assert found["words"] == sum(len(text.split()) for text in documents)
    assert found["tokens_per_word"] == len(ids) / found["words"]
    assert found["characters_per_token"] == sum(map(len, documents)) / len(ids)
    assert found["bytes_per_token"] == sum(len(text.encode()) for text in documents) / len(ids)
    assert found["byte_share"] == sum(map(processor.is_byte, ids)) / len(ids)


def test_changed_words_are_counted(trained: Path, extended: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the\n\nthe кот", encoding="utf-8")
    model = trained / "tokenizer.model"
    assert [own["words_changed"] for own in measure([model, model], [text])] == [0, 0]
    new = sentencepiece.SentencePieceProcessor(model_file=str(extended / "tokenizer.model"))
    piece = next(new.id_to_piece(index) for index in range(3000, 3300) if re.match("▁[а-я]{3}", new.id_to_piece(index)))
    text.write_text(f"the {piece[1:]} the the", encoding="utf-8")
    before, after = measure([model, extended / "tokenizer.model"], [text])
    assert (after["words"], after["words_changed"], before["words_changed"]) == (4, 0.25, 0)
    assert after["tokens"] < before["tokens"]


def test_report_has_every_figure(
    trained: Path, extended: Path, corpus: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ReportTokenizers(
        (trained, extended / "tokenizer.model"),
        text=(f"ru={corpus[0]}", f"ru={corpus[1]}", str(corpus[-1])),
        json=tmp_path / "report.json",
        plot=tmp_path / "figure.png",
    )
    report_tokenizers(options)
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    base, longer = report["tokenizers"].values()
    assert list(report["tokenizers"]) == ["tokenizer", "longer"]
    assert (base["pieces"], longer["pieces"]) == (3000, 3300)
    assert base["shared"] == {"tokenizer": 3000, "longer": 3000}
    assert base["unreachable"] == longer["unreachable"] == 0
    assert list(base["texts"]) == ["ru", "topics"]
    ru = longer["texts"]["ru"]
    assert ru == measure([trained / "tokenizer.model", extended / "tokenizer.model"], corpus[:2])[1]
    assert ru["context_gain"] == base["texts"]["ru"]["tokens"] / ru["tokens"] > 1
    assert base["texts"]["ru"]["words_changed"] == 0 < ru["words_changed"]
    assert "".join(longer["example"]).replace("▁", " ").strip() == EXAMPLE
    for part in ("tokens/word", f"{ru['tokens_per_word']:.3f}", f"{ru['context_gain']:.2f}x", EXAMPLE, "3,300"):
        assert part in printed


def test_byte_level_tokenizers_are_reported_on(
    trained: Path, corpus: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their pieces are shown and compared as those of SentencePiece are."""
    base = make_tokenizer(tmp_path / "base", [corpus[-1].read_text(encoding="utf-8")])
    options = ExtendTokenizer(base=base, input=corpus[:1], output=tmp_path / "longer", vocab_size=700)
    extend_tokenizer(options)
    models = (tmp_path / "base", tmp_path / "longer" / "tokenizer.json", trained)
    report_tokenizers(ReportTokenizers(models, (str(corpus[0]),), json=tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    before, after, _ = report["tokenizers"].values()
    assert (before["pieces"], after["pieces"], after["unreachable"]) == (400, 700, 0)
    assert after["shared"]["base"] == 400
    assert after["shared"]["tokenizer"] > 300  # the bytes that are no characters, letters and more
    assert "".join(after["example"][2:]).replace("▁", " ") == EXAMPLE[1:]  # М is two bytes
    (text,) = after["texts"].values()
    assert text == measure([base, options.output / "tokenizer.json"], corpus[:1])[1]
    assert 0 < text["words_changed"] <= 1
    capsys.readouterr()
    report_run(Report((options.output,)))
    printed = capsys.readouterr().out
    assert "what was added to the base" in printed
    assert "base_sha256" in printed


def test_outputs_and_models_are_checked_first(trained: Path, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    text = (str(corpus[0]),)
    (tmp_path / "there.json").write_text("")
    with pytest.raises(InputError, match=r"there\.json: exists already"):
        report_tokenizers(ReportTokenizers((trained,), text, json=tmp_path / "there.json"))
    with pytest.raises(InputError, match="stands there twice; name each once"):
        report_tokenizers(ReportTokenizers((trained, trained / "tokenizer.model"), text))
    for options in (ReportTokenizers((), text), ReportTokenizers((trained,), ())):
        with pytest.raises(InputError, match="give at least one tokenizer and one text"):
            report_tokenizers(options)
    with pytest.raises(InputError, match="no such file"):
        report_tokenizers(ReportTokenizers((trained,), ("ru=absent.txt",)))
