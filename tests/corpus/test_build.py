"""From sources with planted noise to shards by one command; killed in every stage, the shards are the same."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from browser import assert_good
from corpora import directory_bytes
from endpoint import serving
from planted_noise import Planted, judge_of, measure, plant, read_paragraphs, write_config

import vikhr_fast
from vikhr_fast.corpus.build import Build, build
from vikhr_fast.corpus.settings import Machine
from vikhr_fast.corpus.token_counts import write_token_counts
from vikhr_fast.data.documents import Documents
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.tokenizer import BpeEncoder

pytestmark = pytest.mark.slow

DATA = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian"
KEY = "sk-the-secret-key"
SOURCES = ("encyclopaedia", "news", "stories", "popular_science")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    directory = tmp_path_factory.mktemp("planted")
    paragraphs = {name: read_paragraphs([DATA / f"{name}.txt"]) for name in SOURCES}
    english = [f"Replay paragraph number {n} tells {n * n} things about {n + 1} others." for n in range(30)]
    return plant(directory, paragraphs, english, rate=0.5)


@pytest.fixture(scope="module")
def run(planted: Planted) -> Path:
    """The directory of an uninterrupted build."""
    output = planted.config.parent / "run"
    with pytest.MonkeyPatch.context() as patch, serving(judge_of(planted)) as endpoint:
        patch.setenv("PLANTED_KEY", KEY)
        write_config(planted, [*SOURCES, "web", "english"], endpoint.url, 200, 20_000)
        build(Build(planted.config, output))
    assert endpoint.keys == {f"Bearer {KEY}"}
    return output


def test_what_was_planted_is_found_and_nothing_else(planted: Planted, run: Path) -> None:
    found = measure(planted, run)
    print(json.dumps(found, ensure_ascii=False, indent=2))
    assert found["exact_left"] == found["near_left"] == 0
    assert found["boilerplate_left"] <= 1
    assert found["clean_removed"] == 0
    assert found["private_left"] == found["contaminated_left"] == 0
    assert found["contaminated_found"] == found["contaminated_planted"] > 0
    assert found["rejected"] == 1
    for name in ("classifier", "length", "keywords"):
        assert found["filter"][name]["documents"] >= 4


def test_the_shards_are_those_of_the_documents(run: Path) -> None:
    manifest = json.loads((run / "8-shards" / "manifest.json").read_text())
    for name, own in manifest["shards"].items():
        shards = TokenShards.open(run / "8-shards" / name)
        assert (shards.num_tokens, shards.num_documents) == (own["tokens"], own["documents"])


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("2-dedup", "the least similar first."),
        ("5-annotations", "annotated"),
        ("6-classifier", "quality.f1"),
        ("8-shards", "train/english"),
    ],
)
def test_a_stage_has_tables_of_its_own(run: Path, capsys: pytest.CaptureFixture[str], stage: str, said: str) -> None:
    assert report_run(Report((run / stage,))) is None
    assert said in capsys.readouterr().out


def test_the_report_can_be_made_again(run: Path, tmp_path: Path) -> None:
    page = report_run(Report((run,), tmp_path / "page.html"))
    assert page.read_bytes() == (run / "report.html").read_bytes()
    assert len(assert_good(page, tmp_path).figures) == 2


def test_tokens_before_and_after_are_in_the_report(planted: Planted, run: Path) -> None:
    encoder = BpeEncoder.from_file(planted.config.parent / "tokenizer" / "tokenizer.model")
    found = json.loads((run / "tokens.json").read_text())
    assert list(found) == ["1-collect", "7-filter"]
    page = (run / "report.html").read_text()
    for stage, own in found.items():
        expected: Counter[str] = Counter()
        for table in Documents.open(run / stage).tables():
            for text, source in zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True):
                expected[source] += len(encoder.encode(text)) + 2
        assert {name: tokens for name, tokens in own["tokens"].items() if tokens} == expected
        assert all(f"<td>{tokens:,}</td>" in page for tokens in own["tokens"].values())
    shards = json.loads((run / "8-shards" / "manifest.json").read_text())["shards"]
    assert (
        f"{sum(own['tokens'] for name, own in shards.items() if name.startswith('train/')):,} tokens to train" in page
    )


def test_counted_tokens_are_not_counted_again(run: Path, planted: Planted, tmp_path: Path) -> None:
    documents = Documents.open(run / "1-collect")
    path = tmp_path / "tokens.json"
    write_token_counts(path, {"1-collect": documents}, planted.config.parent / "tokenizer", threads=1)
    counts = json.loads(path.read_text())
    counts["1-collect"]["tokens"]["news"] = 7
    path.write_text(json.dumps(counts))
    write_token_counts(path, {"1-collect": documents}, planted.config.parent / "tokenizer", threads=1)
    assert json.loads(path.read_text())["1-collect"]["tokens"]["news"] == 7
    counts["1-collect"]["of"][1] = "another tokenizer"
    path.write_text(json.dumps(counts))
    write_token_counts(path, {"1-collect": documents}, planted.config.parent / "tokenizer", threads=1)
    assert json.loads(path.read_text())["1-collect"]["tokens"]["news"] > 7


def test_no_key_is_in_any_file(run: Path) -> None:
    for name, content in directory_bytes(run.parent).items():
        assert KEY.encode() not in content, name


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        ("[mix]\ntokenizer = 'absent'", "absent: no such file"),
        ("[decontaminate.sets.quiz]\ninput = ['absent.jsonl']", r"absent\.jsonl: no such file"),
        ("[annotate]\nmodel = 'judge'\nkey_variable = 'NOT_THERE'", "NOT_THERE: not in the environment"),
        ("classifier = 'absent'\n[filter]", "absent/manifest.json: no such file"),
    ],
)
def test_what_would_end_a_late_stage_is_found_at_once(
    planted: Planted, tmp_path: Path, stage: str, complaint: str
) -> None:
    config = tmp_path / "corpus.toml"
    config.write_text(f"{stage}\n[sources.a]\ninput = ['{planted.config.parent / 'news.jsonl'}']\n")
    with pytest.raises(InputError, match=complaint):
        build(Build(config, tmp_path / "out"))
    assert not (tmp_path / "out" / "1-collect").exists()


@pytest.mark.parametrize("machine", [Machine(threads=-1), Machine(memory=0)])
def test_a_machine_that_cannot_be_is_refused(planted: Planted, tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(InputError, match="machine: "):
        build(Build(planted.config, tmp_path / "out", machine))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("times.json", "{", "times.json: damaged: line 1, column 2: not JSON"),
        ("tokens.json", "[]", r"tokens.json: damaged: \[\]: input should be a valid dictionary; remove it"),
        ("1-collect/manifest.json", "{}", "1-collect/manifest.json: damaged: says nothing"),
        ("6-classifier/manifest.json", "{", "6-classifier/manifest.json: damaged"),
    ],
)
def test_damaged_notes_are_named(
    planted: Planted, run: Path, tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        build(Build(planted.config, tmp_path / "run"))


def test_done_stages_stay_and_others_are_refused(planted: Planted, run: Path) -> None:
    before = directory_bytes(run)
    build(Build(planted.config, run))  # no endpoint any more: nothing is asked
    assert directory_bytes(run) == before
    text = planted.config.read_text()
    try:
        planted.config.write_text(text.replace("[dedup]", "[dedup]\nthreshold = 0.9"))
        with pytest.raises(InputError, match="2-dedup: made of other input or settings"):
            build(Build(planted.config, run))
    finally:
        planted.config.write_text(text)
