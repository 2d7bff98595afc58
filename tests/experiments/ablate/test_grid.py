"""Grids: those that come with the package, and mistakes in others."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.ablate.command import GRIDS
from vikhr_fast.experiments.grid import read_grid
from vikhr_fast.experiments.works import Works, works_of

TABLES = ("vocab", "filter", "kl", "instruct")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        main(["ablate", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_the_package_s_grids_are_commands_that_the_command_line_takes(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *TABLES, "--scale", scale, "--output", tmp_path / "run", "--dry-run")
    assert (code, err) == (0, "")
    assert not (tmp_path / "run").exists()
    for number, table in enumerate(TABLES, start=7):
        assert f"{table}, table {number}:" in out
    assert out.count(", seed 2: score: ") == (16 if scale == "demo" else 14)
    assert ("GPU-hours" in out) == (scale == "paper")
    if scale == "paper":
        hours = re.findall(r"kl: ce-kl, seed 0 \[([\d,]+) GPU-hours\]: torchrun .* -m vikhr_fast.train --config", out)
        assert hours == ["864"]  # as `vikhr-fast plan` has it
        assert "kl: ce, seed 0 [651 GPU-hours]" in out  # without the reference's forward


def test_the_real_grids_are_commands_that_the_command_line_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = ("vocab", "kl", "instruct")
    code, out, err = run(capsys, *tables, "--scale", "real", "--output", tmp_path / "run", "--dry-run")
    assert (code, err) == (0, "")
    assert out.count(", seed 2: score: ") == 6 + 6 + 3
    trainings = re.findall(r"seed (\d): train --config real-(\w+) .*--runtime.threads 1", out)
    assert len(trainings) == 3 * 8
    assert out.count("--kl.weight 0") == 3 * 3


def test_the_grid_with_a_replay_compares_with_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ("--inputs", "base", tmp_path, "russian", tmp_path, "english", tmp_path)
    code, out, err = run(capsys, "kl", "--scale", "replay", *inputs, "--output", tmp_path / "run", "--dry-run")
    assert (code, err) == (0, "")
    assert out.count(", seed 2: score: ") == 12
    trainings = re.findall(r"seed \d: (train --config real-pretrain .*)", out)
    assert len(trainings) == 3 * 12
    assert all(" english " in words for words in trainings)
    on_replay = "--kl.sources english"
    assert sum(on_replay in words for words in trainings) == 3 * 4
    with_original = [words for words in trainings if f"--kl.reference {tmp_path}" in words]
    assert len(with_original) == 3 * 4
    assert sum(on_replay in words for words in with_original) == 3 * 2


def test_the_share_of_the_kl_is_a_grid_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fraction", "--output", tmp_path / "run", "--dry-run")
    assert (code, err) == (0, "")
    assert "fraction: continued pre-training with the KL on a share of the sequences." in out
    for fraction in ("1", "0.5", "0.25", "0.125"):
        assert out.count(f"--kl.fraction {fraction} ") == 3  # seeds
    code, _, err = run(capsys, "fraction", "--scale", "paper", "--output", tmp_path / "run")
    assert code == 3
    assert err.rstrip().endswith("paper has no grid for fraction")


def test_what_all_seeds_share_is_made_once_and_what_needs_a_seed_once_a_seed(tmp_path: Path) -> None:
    grid = read_grid(GRIDS / "demo" / "kl.toml")
    works, _ = works_of(grid, tmp_path, {"data": "bundled", "max-bytes": "1"}, range(2))
    names = [work.name for work in works.values()]
    assert names.count("shared: texts") == 1
    assert [name for name in names if "adapted" in name] == ["shared: adapted, seed 0", "shared: adapted, seed 1"]
    seen: set[Path] = set()
    for work in works.values():
        assert seen.issuperset(work.needs)
        assert len(work.needs) == len(set(work.needs))
        seen.add(work.done)
    vocab = read_grid(GRIDS / "demo" / "vocab.toml")
    other, _ = works_of(vocab, tmp_path, {"data": "bundled", "max-bytes": "1"}, range(2))
    both = works.keys() & other.keys()
    assert tmp_path / "shared" / "seed-1" / "cpt" / "model" in both
    assert all(works[done] == other[done] for done in both)


MISTAKES = {
    "control": ('control = "slow"', 'control = "slw"', "control: no arm 'slw'; there are slow, fast"),
    "comparison": (
        "[stages.slow]",
        '[[comparisons]]\narm = "fast"\nagainst = "none"\nlabel = ""\n[stages.slow]',
        "comparisons.0: no arm 'none'",
    ),
    "stage": ('model = "{fast}/model"', 'model = "{fst}/model"', "arms.fast: no stage 'fst'; add it under [stages]"),
    "needed stage": ("--model {start}", "--model {strt}", "stages.slow: no stage 'strt'"),
    "steps": ("{steps:slow:slow}", "{steps:slow:slw}", "stages.fast: no stage 'slw'"),
    "steps of what": ("{steps:slow:slow}", "{steps:slow:shards}", "stages.fast: steps: shards is no training"),
    "reward": ('runs = ["{fast}"]', 'reward = "{fast}"', "arms.fast: questions and reward: give both, or none"),
    "seeds": ("seeds = 2", "seeds = 0", "seeds: 0: input should be greater than or equal to 1"),
    "column": ("russian.perplexity", "russian.perplexty", "columns: no russian.perplexty; there are english_at"),
    "unknown key": ("table = 9", "table = 9\ntabel = 9", "tabel: unknown key"),
    "one arm": ("[arms.fast]", "[arms.slow.x]", "arms.slow.x: unknown key"),
    "name": ('name = "kl"', 'name = "lk"', "name: 'lk': input should be"),
    "circle": ("--model {start}", "--model {fast}", "stages.slow: needs itself"),
    "include": ('include = ["stages.toml"]', 'include = ["absent.toml"]', "absent.toml: no such config"),
    "TOML": ("seeds = 2", "seeds = ", "not valid TOML"),
    "quotes": ("--seed {seed}", "--seed '{seed}", "No closing quotation"),
    "command": ("corpus shard", "corpus shrad", "stages.shards: not a command of this package: "),
    "flag": ("--optimizer.learning-rate", "--optimiser.learning-rate", "not a command of this package: "),
    "value": ("--seed {seed}", "--seed {seed} --kl.weight -1", "stages.slow: train: kl.weight: -1"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_grid_is_one_line(
    kind: str, grids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong, complaint = MISTAKES[kind]
    file = grids / ("stages.toml" if kind == "command" else "kl.toml")
    text = file.read_text()
    assert right in text
    if kind == "circle":
        text = text.replace(right, "--model {fast}", 1).replace(right, "--model {slow}", 1)
    file.write_text(text.replace(right, wrong))
    arguments = ("kl", "--scale", grids, "--inputs", "text", grids / "text.txt", "--output", tmp_path / "run")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert complaint in err
    assert "toml" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("kl", "--seeds", "0"), "--seeds 0: must be 1 or more"),
        (("kl", "--scale", "medium"), "--scale medium: no such directory of grids; give one, or demo, paper, real"),
        (("kl", "--inputs", "date", "x"), "--inputs date: no such input; there are data, max-bytes"),
        (("kl", "--scale", "paper"), "--inputs: english, english-held-out-text, mistral, "),
        ((), "no table; give vocab, filter, kl, instruct or fraction"),
    ],
)
def test_impossible_options_are_one_line(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments, "--output", tmp_path / "run")
    assert (code, err.count("\n")) == (3, 1)
    assert complaint in err
    assert not (tmp_path / "run").exists()


def chain(grids: Path, count: int, needs: Callable[[int], str]) -> Path:
    """The grid with further stages, each of which needs others, and an arm that needs the first."""
    stages = [f'[stages.s{n}]\nrun = "corpus shard --input {needs(n)}"\n' for n in range(count)]
    last = f'[stages.s{count}]\nrun = "corpus shard --input x --tokenizer {{seed}}"\n'
    text = (grids / "kl.toml").read_text()
    (grids / "kl.toml").write_text(text + "\n".join([*stages, last]))
    return grids / "kl.toml"


def test_stages_that_need_each_other_in_a_web_are_soon_in_order(grids: Path, tmp_path: Path) -> None:
    """Every path through it would be 2^60."""
    grid = read_grid(chain(grids, 60, lambda n: f"{{s{n + 1}}} {{s{min(n + 2, 60)}}}"))
    works, _ = works_of(grid, tmp_path, dict.fromkeys(grid.inputs, "x"), range(2))
    assert not any("s0" in work.name for work in works.values())  # no arm needs it
    web = Works(grid, tmp_path, dict.fromkeys(grid.inputs, "x"))
    web.add_stage("s0", 1)
    assert [work.name for work in web.works.values()] == [f"s{n}, seed 1" for n in range(60, -1, -1)]


def test_a_chain_of_stages_has_an_end(grids: Path) -> None:
    with pytest.raises(InputError, match=r"kl\.toml: stages\.s\d+: needs more than 100 stages one after another"):
        read_grid(chain(grids, 3000, lambda n: f"{{s{n + 1}}}"))


@pytest.mark.parametrize(("made", "problem"), [(None, "no such file or directory"), (b"", "empty")])
def test_an_input_that_is_wrong_leaves_no_output(
    made: bytes | None, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    russian = tmp_path / "russian.txt"
    if made is not None:
        russian.write_bytes(made)
    inputs = ("--inputs", "base", tmp_path, "russian", russian)
    code, out, err = run(capsys, "vocab", "--scale", "real", "--output", tmp_path / "run", *inputs)
    assert (code, out) == (3, "")
    assert f"--inputs russian {russian}: {problem}; --dry-run says what it is" in err
    assert not (tmp_path / "run").exists()
