"""Sources of every kind become documents with one schema; bad records are put aside; a killed run goes on."""

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import directory_bytes, texts_of, write_config, write_jsonl

from vikhr_fast.corpus import collect as module
from vikhr_fast.corpus.collect import Collect, collect
from vikhr_fast.corpus.settings import SourceSettings, read_settings
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import InputError


def collected(tmp_path: Path, part_bytes: int = 1 << 20, **sources: SourceSettings) -> Documents:
    collect(Collect(write_config(tmp_path / "corpus.toml", sources, part_bytes), tmp_path / "out"))
    return Documents.open(tmp_path / "out")


def rows(documents: Documents) -> list[dict[str, Any]]:
    return [row for table in documents.tables() for row in table.to_pylist()]


def test_every_kind_of_source_has_one_schema(tmp_path: Path) -> None:
    records = [{"title": "Заголовок", "body": "Раз.", "votes": 3, "n": 7}, {"title": None, "body": "Два.", "n": 8}]
    write_jsonl(tmp_path / "a.jsonl", records)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"body": ["Три."], "votes": [5]}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("Четыре.\n\nПять.")
    titled = SourceSettings(input=(str(tmp_path / "?.jsonl*"),), text=("title", "body"), id="n", meta=("votes",))
    documents = collected(
        tmp_path,
        habr=titled,
        table=SourceSettings(input=(str(tmp_path / "c.parquet"),), text=("body",), meta=("votes",)),
        plain=SourceSettings(input=(str(tmp_path / "d.txt"),)),
    )
    assert rows(documents) == [
        *2
        * [
            {"id": "habr/7", "text": "Заголовок\n\nРаз.", "source": "habr", "meta": '{"votes": 3}'},
            {"id": "habr/8", "text": "Два.", "source": "habr", "meta": '{"votes": null}'},
        ],
        {"id": "table/1", "text": "Три.", "source": "table", "meta": '{"votes": 5}'},
        {"id": "plain/1", "text": "Четыре.", "source": "plain", "meta": "{}"},
        {"id": "plain/2", "text": "Пять.", "source": "plain", "meta": "{}"},
    ]
    assert documents.counts["plain"] == {
        "read": 2,
        "rejected": 0,
        "filtered_out": 0,
        "documents": 2,
        "bytes": len("Четыре.Пять.".encode()),
    }


def test_filter_sort_and_top(tmp_path: Path) -> None:
    votes = [5, None, 9, 1, 9, 7]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i), "votes": v, "l": "ru"} for i, v in enumerate(votes)])
    best = SourceSettings(input=(str(path),), sort_by="votes", top=3)
    rest = SourceSettings(input=(str(path),), sort_by="votes", descending=False)
    taken = SourceSettings(input=(str(path),), where="l in ['ru', 'uk'] and votes is not None and votes < 9", top=2)
    documents = collected(tmp_path, best=best, rest=rest, taken=taken)
    assert texts_of(documents) == ["2", "4", "5", *("3", "0", "5", "2", "4", "1"), "0", "3"]


def test_bad_records_are_put_aside_with_file_line_and_reason(tmp_path: Path) -> None:
    lines = [b'{"text": "good", "v": 1}', b"{broken", b'{"text": 5}', b'{"text": "\xff"}', b'{"text": "\\ud800"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "odd", "v": "x"}', b'{"v": 2}']))
    cut = zstandard.compress(b'{"text": "fine", "v": 2}\n' * 5000)
    (tmp_path / "b.jsonl.zst").write_bytes(cut[: len(cut) - 4])
    pq.write_table(pa.table({"text": ["also", None], "v": [1, 1]}), tmp_path / "c.parquet")
    inputs = tuple(str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.zst", "c.parquet"))
    documents = collected(tmp_path, s=SourceSettings(input=inputs, where="v + 0 >= 0"))
    assert set(texts_of(documents)) >= {"good", "also"}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    places = [(Path(entry["file"]).name, entry["line"]) for entry in rejected]
    assert places[:6] == [("a.jsonl", line) for line in (2, 3, 4, 5, 6, 7)]
    assert places[-1] == ("c.parquet", 2)
    assert "b.jsonl.zst" in [name for name, _ in places]
    assert documents.counts["s"]["rejected"] == len(rejected) == 8
    for entry, reason in zip(rejected, ("not valid JSON", "int, not text", "invalid UTF-8", "surrogate"), strict=False):
        assert reason in entry["reason"]


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("sort_by", [None, "v"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, sort_by: str | None
) -> None:
    class KilledError(BaseException):
        pass

    for name in "ab":
        records = [{"text": f"{name}{i} " + "слово " * 40, "v": i * 7 % 13} for i in range(12)]
        lines = [json.dumps(record) for record in records]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines[:4], "{bad", *lines[4:9], "{bad", *lines[9:]]))
    sources = {
        name: SourceSettings(input=(str(tmp_path / f"{name}.jsonl"),), sort_by=sort_by, where="v != 3") for name in "ab"
    }
    config = write_config(tmp_path / "corpus.toml", sources, part_bytes=2000)
    collect(Collect(config, tmp_path / "whole"))
    assert len(Documents.open(tmp_path / "whole").parts) >= 6

    write = module.write_part

    def write_some(path: Path, *arguments: Any) -> None:
        if path.name == f"part-{killed_at:05d}.parquet":
            raise KilledError
        write(path, *arguments)

    monkeypatch.setattr(module, "write_part", write_some)
    with pytest.raises(KilledError):
        collect(Collect(config, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    collect(Collect(config, tmp_path / "out"))
    assert directory_bytes(tmp_path / "out") == directory_bytes(tmp_path / "whole")
    assert not list(tmp_path.glob("out.partial"))


def test_what_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"text": "раз", "v": 1}]))
    for source, complaint in (
        (SourceSettings(input=(str(tmp_path / "absent.jsonl"),)), "absent.jsonl: no such file"),
        (SourceSettings(input=(path,), where="v >"), r"sources.s.where: 'v >': not an expression"),
        (SourceSettings(input=(path,), where=""), "sources.s.where: '': not an expression"),
        (
            SourceSettings(input=(path,), where="v > 5"),
            "no document in all sources together; 1 filtered out by `where`$",
        ),
        (SourceSettings(input=(path,), where="__import__('os')"), r"sources.s.where: .*__import__: no such function"),
        (SourceSettings(input=("hf:owner/set@main",)), "COMMIT is the 40 digits"),
    ):
        with pytest.raises(InputError, match=complaint):
            collected(tmp_path, s=source)
        assert not (tmp_path / "out").exists()


def test_a_number_too_large_to_sort_by_is_a_bad_record(tmp_path: Path) -> None:
    records = [{"text": str(i), "v": v} for i, v in enumerate((1, 10**400, 2, True))]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    documents = collected(tmp_path, s=SourceSettings(input=(str(path),), sort_by="v"))
    assert texts_of(documents) == ["2", "0", "3"]
    assert documents.counts["s"]["rejected"] == 1


def test_sources_without_documents_and_with_bad_records_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "раз"}\n{bad\n')
    sources = {name: SourceSettings(input=(str(tmp_path / f"{name}.jsonl"),)) for name in ("empty", "bad")}
    collected(tmp_path, **sources)
    warnings = dict.fromkeys(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert list(warnings) == [
        "collect: source empty: no document",
        f"collect: source bad: bad records: 1, see {tmp_path / 'out' / 'rejected.jsonl'}",
    ]


def test_hostile_ids_are_data(tmp_path: Path) -> None:
    ids = ["../../x", "a\nb\0c", None, {"a": 1}, 1e308, "x" * 100_000, "same", "same", "\ud800"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i), "id": value} for i, value in enumerate(ids[:-1])])
    with path.open("a") as file:
        file.write(json.dumps({"text": "8", "id": ids[-1]}) + "\n")
    documents = collected(tmp_path, s=SourceSettings(input=(str(path),), id="id"))
    found = [name for table in documents.tables() for name in table["id"].to_pylist()]
    assert found[:4] == ["s/../../x", "s/a\nb\0c", "s/#3", "s/{'a': 1}"]
    assert found[-1] == "s/?"
    assert len(found) == len(ids)


def test_a_config_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    for text, complaint in (
        ("", "sources: missing"),
        ("[sources.a]\ninput = ['x']\nweigth = 2", "sources.a.weigth: unknown key"),
        ("[sources.'a b']\ninput = ['x']", "sources.a b"),
        ("[sources.a]\ninput = []", "sources.a.input"),
        ("[sources.a]\ninput = ['x']\nweight = 0", "sources.a.weight"),
        ("[sources.a]\ninput = ['x']\nweight = 1e9", "sources.a.weight"),
        ("[sources.a]\ninput = ['x']\n[sources.a]", "not valid TOML"),
        ("[sources.a]\ninput = ['x']\n[dedup]\nbands = 7", "dedup: bands 7: must divide num_perm 120"),
        ("[sources.a]\ninput = ['x']\n[filter]", "filter: needs train_filter"),
        ("[sources.a]\ninput = ['x']\n[train_filter]", "train_filter: needs annotate"),
        ("[sources.a]\ninput = ['x']\n[dedup]\nthreshold = 1.5", "dedup.threshold"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=complaint):
            read_settings(path)


def test_meta_is_json_whatever_number_a_record_holds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "раз", "v": NaN, "w": [1, {"x": -Infinity}]}\n')
    source = SourceSettings(input=(str(tmp_path / "a.jsonl"),), meta=("v", "w"))
    (row,) = rows(collected(tmp_path, a=source))
    assert row["meta"] == '{"v": null, "w": [1, {"x": null}]}'


NFC, NFD = "Ёлка и йод.", unicodedata.normalize("NFD", "Ёлка и йод.")


def test_texts_that_are_not_nfc_are_counted_and_normalised_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in (NFC, NFD, "йод", f"{NFD} y")])
    collect(Collect(write_config(tmp_path / "a.toml", {"s": SourceSettings(input=(str(path),))}), tmp_path / "as-is"))
    documents = Documents.open(tmp_path / "as-is")
    assert texts_of(documents) == [NFC, NFD, "йод", f"{NFD} y"]
    assert documents.counts["s"]["not_nfc"] == 2
    assert (
        '2 texts are not in NFC: й may be two characters in them, and take more tokens; normalise = "NFC"'
        in caplog.text
    )
    assert documents.manifest["work"]["settings"] == {"part_bytes": 1 << 20}

    caplog.clear()
    source = {"s": SourceSettings(input=(str(path),), where="'йод' in text")}
    config = write_config(tmp_path / "nfc.toml", source)
    as_before = config.read_text()
    config.write_text(f'{as_before}\n[collect]\nnormalise = "NFC"\n')
    collect(Collect(config, tmp_path / "nfc"))
    documents = Documents.open(tmp_path / "nfc")
    assert texts_of(documents) == [NFC, NFC, "йод", f"{NFC} y"]  # `where` sees them so
    assert documents.counts["s"]["normalised"] == 2
    assert "not_nfc" not in documents.counts["s"]
    assert "not in NFC" not in caplog.text
    config.write_text(as_before)
    with pytest.raises(InputError, match="made of other input or settings"):
        collect(Collect(config, tmp_path / "nfc"))
    config.write_text(f'{as_before}\n[collect]\nnormalise = "NFKC"\n')
    with pytest.raises(InputError, match=r"collect\.normalise"):
        read_settings(config)


def test_ids_of_their_own_and_places_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(f'{{"text": "{i}", "id": {own}}}' for i, own in enumerate(("2", "null", "NaN", '""', '"4"')))
    )
    documents = collected(tmp_path, s=SourceSettings(input=(str(tmp_path / "a.jsonl"),), id="id"))
    assert [row["id"] for row in rows(documents)] == ["s/2", "s/#2", "s/#3", "s/#4", "s/4"]
    assert documents.counts["s"]["without_id"] == 3


def test_replaced_values_and_files_cut_short_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ['{"text": "а", "v": NaN}', '{"text": "б", "v": "\\ud800"}', '{"text": "в", "v": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x", "v": 2}\n' * 5000)[:-20])
    documents = collected(tmp_path, s=SourceSettings(input=(str(tmp_path / "*.jsonl*"),), meta=("v",)))
    assert [row["meta"] for row in rows(documents)][:3] == ['{"v": null}', '{"v": "?"}', '{"v": 1}']
    counts = documents.counts["s"]
    assert (counts["meta_replaced"], counts["cut_short"], counts["rejected"]) == (2, 1, 1)
    assert "source s: 2 records have NaN, infinity or half of a surrogate pair" in caplog.text
    assert "source s: 1 files could not be read to their end" in caplog.text


def test_a_cell_that_is_kept_is_read_to_its_last_digit_or_rejected(tmp_path: Path) -> None:
    when = pa.array([1001, 2000], pa.timestamp("ns"))
    day = pa.array([10**8, 0], pa.int32()).cast(pa.date32())
    pq.write_table(
        pa.table({"text": pa.array(["а", "б"], pa.string_view()), "when": when, "day": day}), tmp_path / "a.parquet"
    )
    path = str(tmp_path / "a.parquet")
    documents = collected(
        tmp_path,
        kept=SourceSettings(input=(path,), meta=("when",), where="when is not None and when.year == 1970"),
        bad=SourceSettings(input=(path,), meta=("day",)),
    )
    assert [(row["id"], row["meta"]) for row in rows(documents)] == [
        ("kept/1", '{"when": "1970-01-01 00:00:00.000001001"}'),
        ("kept/2", '{"when": "1970-01-01 00:00:00.000002"}'),
        ("bad/1", '{"day": "1970-01-01"}'),
    ]
    assert documents.counts["bad"]["rejected"] == 1


def test_long_lines_are_rejected_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "раз"}, {"text": "два " * 1000}, {"text": "три"}]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "b.txt").write_text("четыре\n\n" + "пять пять пять\n" * 500 + "\n\nшесть")
    sources = {"s": SourceSettings(input=(str(tmp_path / "a.jsonl.gz"), str(tmp_path / "b.txt")))}
    config = write_config(tmp_path / "corpus.toml", sources)
    config.write_text(config.read_text() + "\n[collect]\nmax_line = 0.005\n")
    collect(Collect(config, tmp_path / "out"))
    documents = Documents.open(tmp_path / "out")
    assert texts_of(documents) == ["раз", "три", "четыре", "шесть"]
    assert (documents.counts["s"]["read"], documents.counts["s"]["rejected"]) == (4, 2)
    notes = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(note["file"]).name, note["line"]) for note in notes] == [("a.jsonl.gz", 2), ("b.txt", 3)]
    assert all("more than 0.005 MB; cut it up" in note["reason"] for note in notes)
    assert documents.manifest["work"]["settings"]["max_line"] == 0.005
    config.write_text(config.read_text().replace("0.005", "1.0"))
    with pytest.raises(InputError, match="made of other input or settings"):
        collect(Collect(config, tmp_path / "out"))
    config.write_text(config.read_text().replace("1.0", "64.0"))
    collect(Collect(config, tmp_path / "whole"))
    assert "max_line" not in Documents.open(tmp_path / "whole").manifest["work"]["settings"]
    for impossible in ("0", "-1.0", "nan", "inf", "true"):
        config.write_text(config.read_text().replace("64.0", impossible))
        with pytest.raises(InputError, match=r"collect\.max_line: "):
            read_settings(config)
        config.write_text(config.read_text().replace(f"= {impossible}", "= 64.0"))


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("top = 3", "top = true", "sources.s.top: True: input should be a valid integer"),
        ("top = 3", "top = 3.0", "sources.s.top: 3.0: input should be a valid integer"),
        ("top = 3", 'top = "3"', "sources.s.top: '3': input should be a valid integer"),
        ("top = 3", "top = 0", "sources.s.top: 0: input should be greater"),
        ("top = 3", "descending = 1", "sources.s.descending: 1: input should be a valid boolean"),
        ("weight = 1.0", "weight = true", "sources.s.weight: True: input should be a valid number"),
        ("weight = 1.0", "weight = nan", "sources.s.weight: nan: input should be"),
        ("top = 3", "where = 5", "sources.s.where: 5: input should be a valid string"),
        ("top = 3", f'where = "{"-" * 100_000}1"', "where: '---.* not an expression: more than 10,000 characters"),
    ],
)
def test_values_of_another_kind_are_one_line(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "раз"}])
    text = f'[sources.s]\ninput = ["{file}"]\nsort_by = "1"\ntop = 3\nweight = 1.0\n'
    (tmp_path / "corpus.toml").write_text(text.replace(right, wrong))
    with pytest.raises(InputError, match=complaint) as caught:
        collect(Collect(tmp_path / "corpus.toml", tmp_path / "out"))
    assert "\n" not in str(caught.value)
    (tmp_path / "corpus.toml").write_text(text)
    collect(Collect(tmp_path / "corpus.toml", tmp_path / "out"))
