"""The command line: help, exit codes, and one clear line for every bad input."""

import errno
import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hostile import WORST, is_seen

import vikhr_fast
from vikhr_fast.cli import main
from vikhr_fast.commands import COMMANDS, Command
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.errors import InputError
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

STORIES = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian" / "stories.txt"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `tokenizer`, its `shards` and a fitting `model`."""
    root = tmp_path_factory.mktemp("good")
    train_tokenizer(TrainTokenizer(input=(STORIES,), output=root / "tokenizer", vocab_size=520))
    write_shards(Shard(input=(STORIES,), tokenizer=root / "tokenizer", output=root / "shards"))
    shape = ModelConfig(
        vocab_size=520,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
    )
    Mistral(shape).save_pretrained(root / "model")
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "model")
    return root


@pytest.fixture
def workspace(good: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    shutil.copytree(good, tmp_path / "workspace")
    return tmp_path / "workspace"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


def training(workspace: Path, *more: str | Path) -> list[str | Path]:
    return [
        *("train", "--config", "demo-pretrain", "--model", workspace / "model", "--output", workspace / "run"),
        *("--data.train", "ru", workspace / "shards", "--schedule.max-steps", "1", *more),
    ]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def token_file(workspace: Path) -> Path:
    manifest = json.loads((workspace / "shards" / "manifest.json").read_text())
    return workspace / "shards" / str(manifest["files"][0]["name"])


def other_vocabulary(workspace: Path) -> None:
    config = json.loads((workspace / "model" / "config.json").read_text())
    shape = {name: config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
    shutil.rmtree(workspace / "model")
    Mistral(ModelConfig(vocab_size=500, **shape, **heads)).save_pretrained(workspace / "model")


def write_toml(text: str) -> Callable[[Path], None]:
    return lambda workspace: (workspace / "run.toml").write_text(text) and None


def change_config(**changes: Any) -> Callable[[Path], object]:
    def change(workspace: Path) -> None:
        file = workspace / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def odd_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')


BAD_TRAINING: dict[str, tuple[Callable[[Path], Any], list[str], list[str]]] = {
    # name: (damage, further flags, what the line must name)
    "missing config": (lambda _: None, ["--config", "no-such.toml"], ["no-such.toml"]),
    "odd count": (write_toml("seed = true\n"), ["--config", "run.toml"], ["run.toml", "seed: True: input should"]),
    "float count": (write_toml("[batch]\nmicro_batch = 2.0\n"), ["--config", "run.toml"], ["batch.micro_batch: 2.0"]),
    "text count": (write_toml('[data]\nepochs = "3"\n'), ["--config", "run.toml"], ["data.epochs: '3': input should"]),
    "endless epochs": (write_toml("[data]\nepochs = 1000000\n"), ["--config", "run.toml"], ["data.epochs: 1000000"]),
    "huge seed": (
        write_toml(f"seed = {2**63}\n"),
        ["--config", "run.toml"],
        ["run.toml: not valid TOML: seed: an integer"],
    ),
    "odd flag": (write_toml('tensorboard = "no"\n'), ["--config", "run.toml"], ["tensorboard: 'no': input should"]),
    "deep TOML": (write_toml(f"a = {'[' * 9000}\n"), ["--config", "run.toml"], ["run.toml: not valid TOML: nested"]),
    "NUL": (
        write_toml('model = "a\\u0000"\n'),
        ["--config", "run.toml"],
        ["run.toml: not valid TOML: model: a string"],
    ),
    "unknown key": (write_toml("[data]\nbogus = 1\n"), ["--config", "run.toml"], ["run.toml", "data.bogus"]),
    "broken toml": (write_toml("[data\n"), ["--config", "run.toml"], ["run.toml", "line 1"]),
    "impossible value": (lambda _: None, ["--batch.micro-batch", "0"], ["batch.micro_batch", "0"]),
    "indivisible batch": (lambda _: None, ["--batch.micro-batch", "3"], ["batch.sequences_per_step"]),
    "missing shards": (lambda w: shutil.rmtree(w / "shards"), [], ["shards"]),
    "flipped byte in a shard": (lambda w: flip_byte(token_file(w)), [], [".bin", "vikhr-fast corpus shard"]),
    "truncated shard": (lambda w: os.truncate(token_file(w), 100), [], [".bin", "100"]),
    "broken manifest": (lambda w: os.truncate(w / "shards" / "manifest.json", 50), [], ["manifest.json"]),
    "missing model": (lambda w: shutil.rmtree(w / "model"), [], ["model", "config.json"]),
    "deep config": (lambda w: (w / "model" / "config.json").write_text("[" * 100_000), [], ["config.json", "nested"]),
    "endless layers": (change_config(num_hidden_layers=10**9), [], ["config.json", "num_hidden_layers is 1000000000"]),
    "absent layers": (change_config(num_hidden_layers=4096), [], ["num_hidden_layers is 4,096, but there are only"]),
    "absurd vocabulary": (change_config(vocab_size=10**12), [], ["config.json", "vocab_size is 1000000000000"]),
    "odd index": (lambda w: odd_index(w / "model"), [], ["model.safetensors.index.json: weight_map: must be"]),
    "missing weights": (lambda w: (w / "model" / "model.safetensors").unlink(), [], ["model.safetensors"]),
    "truncated weights": (lambda w: os.truncate(w / "model" / "model.safetensors", 500), [], ["model.safetensors"]),
    "other vocabulary": (other_vocabulary, [], ["shards", "520", "500"]),
    "no reference": (lambda _: None, ["--kl.reference", "nowhere"], ["nowhere"]),
    "no record of adaptation": (lambda _: None, ["--kl.support", "shared"], ["adapt.json", "vikhr-fast adapt"]),
    "kernels without a GPU": (lambda _: None, ["--kernels", "triton"], ["kernels", "triton"]),
    "unknown source": (lambda _: None, ["--kl.source-weights", "en", "0.5"], ["kl.source_weights", "en"]),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training_input(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, flags, named = BAD_TRAINING[name]
    damage(workspace)
    monkeypatch.chdir(workspace)
    arguments = training(workspace, *flags)
    if "--config" in flags:
        del arguments[1:3]
    code, output, errors = run(capsys, *arguments)
    assert code == 3
    assert output == ""
    assert len(errors.splitlines()) == 1
    for part in named:
        assert part in errors
    assert not (workspace / "run").exists()


BAD_TEXT: dict[str, tuple[str, bytes | None, list[str]]] = {
    "missing file": ("gone.txt", None, ["gone.txt"]),
    "empty corpus": ("text.txt", b"", ["text.txt"]),
    "blank corpus": ("text.txt", b"\n\n \n", ["text.txt"]),
    "invalid UTF-8": ("text.txt", b"one\n\ntwo\xff\n", ["text.txt", "line 3"]),
    "binary": ("text.txt", bytes(range(256)), ["text.txt"]),
    "not JSON": ("text.jsonl", b'{"text": "a"}\n{"text": \n', ["text.jsonl", "2"]),
    "no text field": ("text.jsonl", b'{"body": "a"}\n', ["text.jsonl", "1", "text"]),
    "not Parquet": ("text.parquet", b"PAR1 no", ["text.parquet"]),
    "not gzip": ("text.txt.gz", b"plain", ["text.txt.gz"]),
    "unknown kind": ("text.docx", b"plain", ["text.docx"]),
}


@pytest.mark.parametrize("name", BAD_TEXT)
@pytest.mark.parametrize("command", ["tokenizer", "shard"])
def test_bad_text(workspace: Path, capsys: pytest.CaptureFixture[str], name: str, command: str) -> None:
    file_name, content, named = BAD_TEXT[name]
    text, output = workspace / file_name, workspace / "output"
    if content is not None:
        text.write_bytes(content)
    if command == "tokenizer":
        arguments: list[str | Path] = ["tokenizer", "train", "--input", text, "--output", output]
    else:
        arguments = ["corpus", "shard", "--input", text, "--tokenizer", workspace / "tokenizer", "--output", output]
    code, printed, errors = run(capsys, *arguments)
    assert code == 3
    assert printed == ""
    assert len(errors.splitlines()) == 1
    for part in named:
        assert part in errors
    assert not output.exists()
    assert not list(workspace.glob(".output*"))


def test_output_is_never_overwritten(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(
        capsys,
        "adapt",
        "--base",
        workspace / "model",
        "--tokenizer",
        workspace / "tokenizer",
        "--output",
        workspace / "model",
    )
    assert code == 3
    assert "exists already" in errors


def test_changed_config_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *training(workspace))[0] == 0
    code, _, errors = run(capsys, *training(workspace, "--optimizer.learning-rate", "0.5"))
    assert code == 3
    assert "optimizer.learning_rate" in errors
    assert "--output" in errors


def test_damaged_checkpoint_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *training(workspace))[0] == 0
    shutil.rmtree(workspace / "run" / "model")
    [damaged] = (workspace / "run" / "checkpoints").glob("step-*/*.distcp")
    flip_byte(damaged)
    code, _, errors = run(capsys, *training(workspace))
    assert code == 3
    assert str(damaged) in errors


@pytest.mark.parametrize("stage", ["tokenizer", "adapt", "shard", "checkpoint"])
def test_full_disk(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The system's answer on a full disk, given to syncs: exit code 4, one line, nothing half-written."""
    output = workspace / "output"
    arguments: dict[str, list[str | Path]] = {
        "tokenizer": ["tokenizer", "train", "--input", STORIES, "--output", output, "--vocab-size", "520"],
        "adapt": ["adapt", "--base", workspace / "model", "--tokenizer", workspace / "tokenizer", "--output", output],
        "shard": ["corpus", "shard", "--input", STORIES, "--tokenizer", workspace / "tokenizer", "--output", output],
        "checkpoint": training(workspace),
    }

    def full(_: int) -> None:
        if stage != "checkpoint" or (workspace / "run" / "checkpoints").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, errors = run(capsys, *arguments[stage], *(["--log-level", "warning"] if stage == "checkpoint" else []))
    assert code == 4
    assert "no space left" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    left = {path.name for path in workspace.iterdir()}
    assert left == {"model", "tokenizer", "shards"} | ({"run"} if stage == "checkpoint" else set())
    if stage == "checkpoint":
        assert list((workspace / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(errno.EFBIG, 4), (errno.EDQUOT, 4), (errno.EIO, 3)])
def test_a_write_that_fails_is_one_line_that_names_the_file(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    shard = ("corpus", "shard", "--input", STORIES, "--tokenizer", good / "tokenizer", "--output", tmp_path / "out")
    found, output, errors = run(capsys, *shard, "--log-level", "warning")
    assert (found, output) == (code, "")
    assert errors.startswith(f"vikhr-fast: error: {tmp_path / '.out'}")
    assert "run the same command again" in errors
    assert len(errors.splitlines()) == 1


def test_a_path_that_leads_nowhere_is_one_line_with_advice(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "below" / "out"
    shard = ("corpus", "shard", "--input", STORIES, "--tokenizer", good / "tokenizer", "--output", output)
    code, _, errors = run(capsys, *shard, "--log-level", "warning")
    assert code == 3
    assert errors.endswith(": Not a directory; a file stands where a directory should; choose another path\n")


INTERRUPTED = """
import atexit, signal, time
from vikhr_fast import cli

def work(_):
    print("works", flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
atexit.register(time.sleep, 1)
cli.parse = lambda words: (work, None)
cli.main([])
"""


def test_ctrl_c_again_while_the_process_ends_is_as_one() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGINT)
    said = process.stderr.readline()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    assert (said, process.communicate()) == ("vikhr-fast: error: interrupted\n", ("", ""))
    assert process.returncode == 130


def test_really_full_disk(workspace: Path) -> None:
    disk = workspace / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        command = [sys.executable, "-m", "vikhr_fast", *map(str, training(workspace, "--output", disk / "run"))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 4, result.stderr
        assert "no space left" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert list((disk / "run").glob("checkpoints/*")) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", ["", *(command.path for command in COMMANDS)])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, output, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert f"vikhr-fast {command}".strip() in output


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.path)
def test_a_commands_function_takes_its_options(command: Command) -> None:
    module = importlib.import_module(f"vikhr_fast.{command.module}")
    function, options = getattr(module, command.function), getattr(module, command.options)
    assert next(iter(get_type_hints(function).values())) is options
    assert len(inspect.signature(function).parameters) == 1


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("", "tokenizer", "corpus", "instruct", "generate"):
        _, output, _ = run(capsys, *group.split(), "--help")
        names = [c.path.removeprefix(group).split()[0] for c in COMMANDS if c.path.startswith(f"{group} ".lstrip())]
        assert all(f"• {name} " in output for name in names), group


def test_tokenizer_commands_go_hand_in_hand(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    extend = ("tokenizer", "extend", "tokenizer", "--input", STORIES, "--output", "longer", "--vocab-size", "600")
    code, output, _ = run(capsys, *extend)
    assert (code, json.loads(output)["unreachable"]) == (0, 0)
    assert run(capsys, "tokenizer", "export", "longer", "--output", "copy")[0] == 0
    code, output, _ = run(capsys, "tokenizer", "verify", "copy", "--generated", "100", "--chats", "5")
    assert (code, json.loads(output)["differences"]) == (0, 0)
    report = ("tokenizer", "report", "tokenizer", "longer", "--text", f"ru={STORIES}", "--plot", "figure.png")
    code, output, _ = run(capsys, *report)
    assert code == 0
    assert "tokens/word" in output
    assert (workspace / "figure.png").exists()
    code, output, errors = run(capsys, *extend)
    assert (code, output) == (3, "")
    assert "exists already" in errors
    code, _, errors = run(capsys, "tokenizer", "verify", "model/tokenizer.model")
    assert code == 3
    assert "not a directory" in errors


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"vikhr-fast {metadata.version('vikhr-fast')}\n", "")


def test_underscores_are_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "corpus", "train_filter", "--help")
    assert (code, "vikhr-fast corpus train-filter" in output) == (0, True)


def test_wrong_flags_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", "--no-such-flag", "1")[0] == 2
    assert run(capsys, "train")[0] == 2
    assert run(capsys, "no-such-command")[0] == 2
    assert run(capsys, "doctor", "--log-level", "loud")[0] == 2


@pytest.mark.parametrize("words", [["plan"], ["train", "--config", "demo-pretrain"], []], ids=lambda words: words[:1])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_wrong_flag_is_shown_as_plain_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    code, _, errors = run(capsys, *words, "--bogus", "\x1b]0;pwn\a\x1b[31mred\u202e")
    assert code == 2
    assert r"\x1b]0;pwn\x07red\u202e" in errors
    assert errors.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", [*WORST, "[/x]\udcff"])
def test_an_error_is_one_line_of_plain_text_whatever_it_names(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, output, errors = run(capsys, "report", name)
    assert (code, output) == (3, "")
    assert len(errors.splitlines()) == 1
    assert is_seen(name, errors)
    assert errors.removesuffix("\n").isprintable()


def test_a_run_of_a_name_that_is_not_utf8_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ru\udcff" if word == "ru" else word for word in training(workspace)]
    code, _, errors = run(capsys, *arguments)
    assert code == 3
    assert len(errors.splitlines()) == 1
    assert "config.json: would hold what is not UTF-8" in errors


def test_print_config_shows_the_papers_table_3(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", "vikhr-7b-pretrain", "--model", "m", "--output", "o", "--data.train", "ru", "s"]
    code, output, _ = run(capsys, "train", *flags, "--batch.micro-batch", "3", "--print-config")  # one flag away
    config = json.loads(output)
    assert code == 0
    assert config["optimizer"]["learning_rate"] == 1e-3
    assert (config["optimizer"]["beta1"], config["optimizer"]["beta2"]) == (0.99, 0.95)
    assert config["optimizer"]["eps"] == 1e-8
    assert config["optimizer"]["warmup_steps"] == 10
    assert config["batch"] == {"micro_batch": 3, "sequences_per_step": 128 * 3 * 8}
    assert config["data"]["sequence_length"] == 1024
    assert config["data"]["epochs"] == 1


def test_dry_run_writes_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, *training(workspace), "--dry-run")
    assert code == 0
    assert " 1 steps of 4 sequences" in output
    assert not (workspace / "run").exists()


def test_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "doctor")
    assert code == (3 if "mend" in output else 0)
    for subject in ("Python", "compiler", "extension", "PyTorch", "Triton", "GPU", "disk"):
        assert subject in output


def test_run_directory_keeps_config_and_environment(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *training(workspace), "--seed", "7")[0] == 0
    environment = json.loads((workspace / "run" / "environment.json").read_text())
    assert environment["seed"] == 7
    assert environment["packages"]["torch"]
    assert json.loads((workspace / "run" / "config.json").read_text())["schedule"]["max_steps"] == 1


def test_a_rank_names_itself_where_it_knows_its_number(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    command = (
        "corpus",
        "shard",
        "--input",
        tmp_path / "none.txt",
        "--tokenizer",
        tmp_path,
        "--output",
        tmp_path / "out",
    )
    code, _, error = run(capsys, *command)
    assert (code, error.startswith("vikhr-fast: error: ")) == (3, True)
    monkeypatch.setenv("RANK", "1")
    code, _, error = run(capsys, *command)
    assert (code, error.startswith("vikhr-fast: rank 1: error: ")) == (3, True)


def test_an_error_is_one_line_of_bounded_length_whatever_it_quotes() -> None:
    assert str(InputError("a: 'b\nc\r\nd\u2028e': what to do")) == "a: 'b c d e': what to do"
    long = str(InputError(f"file: {'x' * 1_000_000}: what to do"))
    assert long.startswith("file: xxx")
    assert long.endswith("xxx: what to do")
    assert len(long) < 5000
    assert str(InputError("  two  spaces  ")) == "  two  spaces  "
