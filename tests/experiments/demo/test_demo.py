"""The demo end to end, shrunk by its own options: smaller vocabularies and model, other presets."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import assert_good

from vikhr_fast.errors import InputError
from vikhr_fast.experiments.demo.pipeline import Demo, run_demo
from vikhr_fast.experiments.demo.results import LABELS
from vikhr_fast.experiments.sample.text import text_source
from vikhr_fast.io.console import logger
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.tokenizer import BpeEncoder

pytestmark = pytest.mark.slow

LANGUAGES = ("russian", "english")
PRESET = """
data = {sequence_length = 64}
batch = {micro_batch = 4, sequences_per_step = 4}
optimizer = {learning_rate = 3e-3, warmup_steps = 2}
kl = {weight = 1.0}
runtime = {device = "cpu", dtype = "float32", threads = 1}
schedule = {max_steps = 6, validate_every = 3}
"""


def excerpt(source: str, target: Path) -> Path:
    """About 100 KB of text in paragraphs that all differ."""
    size, taken = 0, []
    for _, text in text_source(source, ()).documents():
        if size < 110_000:
            taken.append(re.sub(r"\n\s*\n", "\n", text))
            size += len(text.encode())
    target.write_text("\n\n".join(taken), encoding="utf-8")
    return target


def cells(page: str) -> list[list[str]]:
    """The rows of all tables of a page."""
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall("<tr>.*</tr>", page)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    directory = tmp_path_factory.mktemp("demo")
    (directory / "base.toml").write_text(PRESET.replace("weight = 1.0", "weight = 0.0"))
    (directory / "pretrain.toml").write_text(PRESET)
    longer = PRESET.replace("sequence_length = 64", "sequence_length = 256").replace("max_steps = 6", "max_steps = 15")
    (directory / "instruct.toml").write_text(longer.replace("weight = 1.0", "weight = 0.0"))
    return Demo(
        output=directory / "run",
        russian=(excerpt("russian", directory / "russian.txt"),),
        english=(excerpt("english", directory / "english.txt"),),
        english_vocab=400,
        russian_vocab=512,
        hidden_size=64,
        layers=1,
        base=directory / "base.toml",
        pretrain=directory / "pretrain.toml",
        instruct=directory / "instruct.toml",
    )


@pytest.fixture
def stage_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The demo's log lines."""
    caplog.set_level("INFO", logger.name)
    return caplog


@pytest.fixture(scope="module")
def finished(tiny: Demo) -> Demo:
    run_demo(tiny)
    return tiny


def test_results_and_report(finished: Demo) -> None:
    results = json.loads((finished.output / "results.json").read_text())
    scores = results["seeds"][0]["scores"]
    assert list(scores) == list(LABELS)
    assert scores["base"]["russian"] > scores["adapted"]["russian"] > scores["cpt"]["russian"] > 0
    per_word = results["tokens_per_word"]
    assert per_word["english"]["russian"] > 2 * per_word["russian"]["russian"]
    assert "".join(results["segments"]["russian"]) == "▁Машинное▁обучение▁изменяет▁мир"
    assert set(results["segments"]["english"]) - {"▁"} <= {f"<0x{byte:02X}>" for byte in range(256)}

    page = (finished.output / "report.html").read_text()
    for model, label in LABELS.items():
        assert [label, f"{scores[model]['russian']:.3f}", f"{scores[model]['english']:.3f}"] in cells(page)
    for comparison in results["english_at_equal_russian"].values():
        assert comparison["differences"] == [comparison["mean"]]
        assert comparison["verdict"] in page
    assert page.count("<svg") == 8


def test_the_report_can_be_made_again(finished: Demo, tmp_path: Path) -> None:
    page = report_run(Report((finished.output,), tmp_path / "page.html"))
    assert page.read_bytes() == (finished.output / "report.html").read_bytes()
    assert len(assert_good(page, tmp_path).figures) == 8


def test_instructions_are_cleaned_and_answers_learnt(finished: Demo) -> None:
    tuning = json.loads((finished.output / "results.json").read_text())["tuning"]
    noise = tuning["noise"]
    assert noise["copies"] > 10
    assert noise["copies_left"] == 0
    assert noise["spoilt"] > 20
    assert noise["spoilt_left"] < noise["spoilt"] / 3
    assert noise["written_left"] > 0.9 * noise["written"]
    for before, after in tuning["perplexity"].values():
        assert after < before
    assert len(tuning["exchanges"]) == 6
    page = (finished.output / "report.html").read_text()
    for exchange in tuning["exchanges"]:
        assert f">{html.escape(exchange['question']).replace('&quot;', '&#34;')}</th>" in page
    trained = (finished.output / "instructions" / "shards" / "train.toml").read_text()
    assert '"russian"' in trained


def test_the_runs_of_cpt_begin_at_the_adapted_model_and_differ_in_the_kl_alone(finished: Demo) -> None:
    runs = [finished.output / "seed-0" / run for run in ("cpt", "cpt-kl", "cpt-kl-shared")]
    first, *others = (json.loads((run / "validation.jsonl").read_text().splitlines()[0]) for run in runs)
    assert first["step"] == 0
    assert others == [first, first]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    terms = [config.pop("kl") for config in configs]
    assert [(kl["weight"], kl["support"]) for kl in terms] == [(0.0, "all"), (1.0, "all"), (1.0, "shared")]
    assert {key for config in configs for key in config if config[key] != configs[0][key]} == {"output"}


def test_the_extended_vocabulary_keeps_the_base_and_reads_as_much_text(finished: Demo) -> None:
    results = json.loads((finished.output / "results.json").read_text())
    rebuilt, extended = (results["vocabularies"]["arms"][name]["figures"] for name in ("rebuilt", "extended"))
    base, old, new = (
        BpeEncoder.from_file(finished.output / f"{name}-tokenizer" / "tokenizer.model")
        for name in ("english", "russian", "extended")
    )
    assert [new.piece(index) for index in range(base.num_pieces)] == list(map(base.piece, range(base.num_pieces)))
    assert new.num_pieces == old.num_pieces == finished.russian_vocab
    pieces = map(new.piece, range(base.num_pieces, new.num_pieces))
    assert extended["cyrillic"]["values"] == [sum(bool(re.search("[А-Яа-яёЁ]", piece)) for piece in pieces)]
    for name, figures in (("russian", rebuilt), ("extended", extended)):
        for language, tokens in results["tokens_per_word"][name].items():
            assert figures[f"{language}.tokens_per_word"]["values"] == [tokens]

    seed = finished.output / "seed-0"
    runs = {name: json.loads((seed / name / "config.json").read_text()) for name in ("cpt", "cpt-extended")}
    different = {key for key in runs["cpt"] if runs["cpt"][key] != runs["cpt-extended"][key]}
    assert different == {"model", "data", "inputs", "output"}
    read, scores = [], []
    for name, shards in (("cpt", "russian-shards"), ("cpt-extended", "extended-shards")):
        validations = [json.loads(line) for line in (seed / name / "validation.jsonl").read_text().splitlines()]
        text = json.loads((finished.output / shards / "russian-train" / "manifest.json").read_text())
        read.append(validations[-1]["tokens"] * text["num_bytes"] / text["num_trained"])
        scores.append(
            {language: [one["sets"][language]["bits_per_byte"] for one in validations] for language in LANGUAGES}
        )
    assert results["vocabularies"]["text_bytes"]["values"] == [min(read)]
    for figures, own, bytes_read in zip((rebuilt, extended), scores, read, strict=True):
        for language, along in own.items():
            assert figures[f"{language}.before"]["values"] == [along[0]]
            (after,) = figures[f"{language}.after"]["values"]
            assert (after == along[-1]) == (bytes_read == min(read))
            assert min(along[-2:]) <= after <= max(along[-2:])


def test_validations_without_their_tokens_are_refused(finished: Demo) -> None:
    path = finished.output / "seed-0" / "cpt-extended" / "validation.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"tokens"', '"token"'))
    with pytest.raises(InputError, match=r"cpt-extended/validation\.jsonl: damaged \(KeyError\('tokens'\)\); delete "):
        run_demo(finished)
    path.write_text(whole)


def test_a_row_compares_the_vocabularies(finished: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(finished)
    arms = json.loads((finished.output / "results.json").read_text())["vocabularies"]["arms"]
    rebuilt, extended = ({key: one["values"][0] for key, one in arms[name]["figures"].items()} for name in arms)
    digits = {f"{one}.{when}": 3 for one in LANGUAGES for when in ("before", "after")}
    digits |= {f"{one}.tokens_per_word": 2 for one in LANGUAGES}
    rows = [
        ["rebuilt", *(f"{rebuilt[key]:.{number}f}" for key, number in digits.items())],
        ["extended", *(f"{extended[key]:.{number}f}" for key, number in digits.items())],
        ["change", *(f"{extended[key] - rebuilt[key]:+.{number}f}" for key, number in digits.items())],
    ]
    printed = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in capsys.readouterr().out.splitlines()]
    shown = cells((finished.output / "report.html").read_text())
    for row in rows:
        assert row in printed
        assert row in shown


def test_a_table_is_printed_and_a_second_run_redoes_nothing(
    finished: Demo, capsys: pytest.CaptureFixture[str], stage_log: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*") if path.is_file()}
    run_demo(finished)
    after = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == {"results.json", "report.html"}
    assert after.keys() == before.keys()
    output = capsys.readouterr().out
    assert re.search(r"CPT \+ KL +│ +\d\.\d{3} │ +\d\.\d{3} │", output)
    assert f"Report: {finished.output / 'report.html'}" in output
    assert "cpt-kl, seed 0: done before" in stage_log.text
    assert "begins" not in stage_log.text


def test_a_dry_run_shows_the_commands(tiny: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(replace(tiny, output=tmp_path / "run", seeds=2, dry_run=True))
    assert not (tmp_path / "run").exists()
    output = capsys.readouterr().out
    assert "to do: russian-tokenizer: tokenizer train --input " in output
    assert f"to do: cpt-kl, seed 1: train --config {tiny.pretrain} --model {tmp_path}/run/seed-1/adapted " in output


@pytest.mark.parametrize("run", ["cpt", "cpt-extended"])
def test_an_interrupted_demo_goes_on_where_it_was(finished: Demo, run: str) -> None:
    base = finished.output / "seed-0" / "base" / "metrics.jsonl"
    stamp, results = base.stat().st_mtime_ns, (finished.output / "results.json").read_bytes()
    weights = finished.output / "seed-0" / run / "model" / "model.safetensors"
    trained = weights.read_bytes()
    for path in sorted((finished.output / "seed-0" / run).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run_demo(finished)
    assert weights.read_bytes() == trained
    assert (finished.output / "results.json").read_bytes() == results
    assert base.stat().st_mtime_ns == stamp


def test_a_record_of_an_earlier_version_means_todays_defaults(finished: Demo, tmp_path: Path) -> None:
    at_start = replace(finished, output=tmp_path, hidden_size=Demo.hidden_size)
    values = json.loads((finished.output / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({n: v for n, v in values.items() if n != "hidden_size"}))
    run_demo(replace(at_start, dry_run=True))
    with pytest.raises(InputError, match="other values of hidden_size;"):
        run_demo(replace(at_start, hidden_size=64, dry_run=True))


@pytest.mark.parametrize("change", ["russian_vocab", "english"])
def test_other_settings_or_texts_are_refused(finished: Demo, tmp_path: Path, change: str) -> None:
    other = excerpt("english", tmp_path / "english.txt")
    other.write_text(other.read_text() + " One more sentence.")
    value = 600 if change == "russian_vocab" else (other,)
    with pytest.raises(InputError, match=rf"{re.escape(str(finished.output))}.* {change}[,; ]") as error:
        run_demo(replace(finished, **{change: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": 0}, "--seeds 0: must be 1 or more"),
        ({"hidden_size": 100}, "--hidden-size 100: must be a multiple of 64"),
        ({"russian_vocab": 400}, "--russian-vocab 400: must be more than --english-vocab, which is extended"),
        ({"max_bytes": 10}, "--max-bytes 10: must be 100000 or more"),
        ({"base": Path("absent")}, "absent: no such config"),
        ({"russian": (Path("absent.txt"),)}, "absent.txt: no such file"),
        ({"russian": (Path("small.txt"),)}, "small.txt: only 12 bytes of text"),
    ],
)
def test_refusals_come_before_any_work(
    tiny: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.txt").write_text("Привет")
    with pytest.raises(InputError, match=re.escape(complaint)):
        run_demo(replace(tiny, output=Path("run"), **change))  # type: ignore[arg-type]
    assert not Path("run").exists()


def test_a_preset_that_validates_only_once_is_refused(tiny: Demo, tmp_path: Path) -> None:
    preset = tmp_path / "once.toml"
    preset.write_text(PRESET.replace("validate_every = 3", "validate_every = 0"))
    with pytest.raises(InputError, match=r"once.toml: schedule.validate_every"):
        run_demo(replace(tiny, output=tmp_path / "run", pretrain=preset))
