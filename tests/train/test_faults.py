"""What can break under a run ends it with a line that says what and where, and costs the steps since a checkpoint."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from training_runs import make_config, start_ranks, write_config

from vikhr_fast.config import ScheduleConfig, TrainConfig
from vikhr_fast.data.packing import PackedCorpus
from vikhr_fast.data.token_shards import MANIFEST_NAME
from vikhr_fast.errors import ExitCode, InputError
from vikhr_fast.io.append_only import append_line, read_lines
from vikhr_fast.train import checkpoint
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS, VALIDATION, forget_steps_after, mean_bits_per_byte

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parents[1] / "helpers" / "faulty_run.py"


def run(workspace: Path, output: Path, **changes: Any) -> TrainConfig:
    return make_config(
        workspace,
        output,
        **{
            "data": {"epochs": 2000},
            "runtime": {"timeout_seconds": 300},
            "schedule": {"max_steps": 4000, "checkpoint_every": 10},
            **changes,
        },
    )


def wait_for_steps(output: Path, steps: int, processes: Sequence[subprocess.Popen[Any]]) -> None:
    deadline = time.monotonic() + 120
    while len(read_lines(output / METRICS)) < steps and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def end(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return " ".join(errors.split())


@pytest.mark.parametrize(("number", "lost"), [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_rank_that_dies_or_stops_is_named(workspace: Path, tmp_path: Path, number: signal.Signals, lost: int) -> None:
    config = run(workspace, tmp_path / "run")
    write_config(config, tmp_path / "run.toml")
    processes = start_ranks([str(FAULTY), str(tmp_path / "run.toml"), "-1", "2"], ranks=2)
    wait_for_steps(config.output, 3, processes)
    processes[lost].send_signal(number)
    errors = end(processes[1 - lost])
    processes[lost].kill()
    processes[lost].communicate(timeout=60)
    assert processes[1 - lost].returncode == ExitCode.RANK_LOST, errors
    if lost == 1:
        assert "rank 1 stopped answering, last in " in errors
        assert "the same command goes on from the last checkpoint" in errors
    else:  # it took the ranks' meeting place with it
        assert "torchrun or rank 0, through which the ranks meet, is gone" in errors


def test_a_hanging_loader_is_named(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run")
    write_config(config, tmp_path / "run.toml")
    processes = start_ranks([str(FAULTY), str(tmp_path / "run.toml"), "1", "3"], ranks=2)
    said = [end(process) for process in processes]
    assert [process.returncode for process in processes] == [ExitCode.RANK_LOST] * 2, said
    named = "rank 1 hangs in loading the data of step 3"
    blaming = [errors for errors in said if named in errors]
    assert blaming, said
    assert all("while others wait in forward and backward of step 3" in errors for errors in blaming)
    # The slower of the two may find the other gone already.
    gone = ("stopped answering", "torchrun or rank 0, through which the ranks meet, is gone")
    assert all(named in errors or any(line in errors for line in gone) for errors in said), said


def test_a_hanging_loader_of_a_single_rank_ends_the_run(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run")
    write_config(config, tmp_path / "run.toml")
    [process] = start_ranks([str(FAULTY), str(tmp_path / "run.toml"), "0", "3"], ranks=1)
    errors = end(process)
    assert process.returncode == ExitCode.RANK_LOST
    assert "rank 0 has been in loading the data of step 3 for " in errors


def test_a_rank_that_never_comes_is_missed(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run", runtime={"timeout_seconds": 1})
    command = write_config(config, tmp_path / "run.toml")
    code = (
        "import vikhr_fast.distributed.ranks as r; r._GRACE_SECONDS = 1; import sys; from vikhr_fast.cli import main; "
    )
    first, second = start_ranks(["-c", code + "main(['train', *sys.argv[1:]])", *command[2:]], ranks=2)
    second.kill()
    second.communicate(timeout=60)
    assert "ranks didn't come together" in end(first)
    assert first.returncode == ExitCode.RANK_LOST


def _rewrite(file: Path) -> None:
    data = file.read_bytes()
    file.with_name("other").write_bytes(data[::-1])
    file.with_name("other").rename(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [(Path.unlink, "gone while it is read"), (_rewrite, "changed while it is read")],
)
def test_a_shard_that_changes_under_the_run(
    workspace: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(workspace / "train", tmp_path / "shards")
    config = run(workspace, tmp_path / "run", data={"train": {"train": tmp_path / "shards"}, "epochs": 2000})
    [process] = start_ranks(write_config(config, tmp_path / "run.toml"), ranks=1)
    wait_for_steps(config.output, 3, [process])
    manifest = json.loads((tmp_path / "shards" / MANIFEST_NAME).read_text())
    file = tmp_path / "shards" / manifest["files"][0]["name"]
    change(file)
    errors = end(process)
    assert process.returncode == ExitCode.BAD_INPUT
    assert "rank 0, loading the data of step " in errors
    assert f"{file.name}: {said}" in errors


def test_a_loader_that_dies_says_where(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PackedCorpus.batch

    def broken(self: PackedCorpus, indices: list[int], kl_factor: float) -> Any:
        if indices[0] >= 8:
            raise OSError(errno.EIO, "Input/output error")
        return whole(self, indices, kl_factor)

    monkeypatch.setattr(PackedCorpus, "batch", broken)
    with pytest.raises(InputError, match=r"rank 0, loading the data of step 2: .*Input/output error"):
        train(run(workspace, tmp_path / "run"))


def test_a_full_disk_is_noticed_before_a_checkpoint(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run(workspace, tmp_path / "run", schedule={"max_steps": 4, "checkpoint_every": 2})
    usage = shutil.disk_usage(tmp_path)
    free = iter((1 << 40, 1000))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(OSError, match="No space left") as raised:
        train(config)
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error")])
def test_a_checkpoint_that_fails_in_the_background_ends_the_run(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    whole = checkpoint._publish

    def failing(unfinished: Path, final: Path, *args: Any) -> None:
        if final.name == "step-00000120":
            raise error
        whole(unfinished, final, *args)

    monkeypatch.setattr(checkpoint, "_publish", failing)
    config = run(workspace, tmp_path / "run", schedule={"max_steps": 4000, "checkpoint_every": 60})
    with pytest.raises(OSError) as raised:  # noqa: PT011  compared below
        train(config)
    assert raised.value.errno == error.errno
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-00000060"]
    assert len(read_lines(config.output / METRICS)) < 180  # it was noticed before the next one


def test_the_policy_of_what_is_kept(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vikhr_fast.evaluate.perplexity import Score
    from vikhr_fast.train import loop

    scores = iter((9.0, 5.0, 7.0, 3.0, 8.0, 8.0, 8.0, 8.0, 8.0))  # before the first step, then after each of eight

    def score(*_: object, **__: object) -> Score:
        value = next(scores)
        return Score(**{name: value if name == "bits_per_byte" else 1 for name in Score.__dataclass_fields__})

    monkeypatch.setattr(loop, "score_shards", score)
    schedule = {"max_steps": 8, "checkpoint_every": 1, "validate_every": 1, "keep_checkpoints": 2}
    config = run(
        workspace,
        tmp_path / "run",
        data={"validation": {"held_out": workspace / "validation"}},
        schedule={**schedule, "keep_every": 4, "keep_best": True},
    )
    train(config)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (config.output / "checkpoints").iterdir())
    assert kept == [3, 4, 7, 8]  # the best, a multiple of four, the last two (the second of them, too)


def test_the_best_is_the_best_of_those_with_a_score(tmp_path: Path) -> None:
    for step in range(1, 7):
        (tmp_path / f"step-{step:08d}").mkdir()
    for step, *scores in ((0, 1.0), (1, None), (2, 6.0, 4.0), (3, 7.0), (5, 8.0), (6, 6.0)):
        sets = {str(number): {"bits_per_byte": score} for number, score in enumerate(scores)}
        append_line(tmp_path / VALIDATION, {"step": step, "sets": sets})
    scores_by_step = mean_bits_per_byte(tmp_path)
    assert scores_by_step == {0: 1.0, 2: 5.0, 3: 7.0, 5: 8.0, 6: 6.0}
    schedule = ScheduleConfig(keep_checkpoints=1, keep_best=True)
    superseded = checkpoint._superseded(checkpoint.complete_checkpoints(tmp_path), 1, schedule, scores_by_step)
    assert [checkpoint.step_of(path) for path in superseded] == [1, 3, 4, 5]


@pytest.mark.parametrize("line", [{}, {"sets": {}}, {"sets": {"a": {}}}, {"sets": [1]}])
def test_scores_that_are_none_are_one_line(tmp_path: Path, line: dict[str, Any]) -> None:
    append_line(tmp_path / VALIDATION, {"step": 2, **line})
    with pytest.raises(InputError, match=r"validation\.jsonl: damaged: no scores of step 2; move the file away"):
        mean_bits_per_byte(tmp_path)


@pytest.mark.parametrize("line", [{}, {"step": "x"}, {"step": float("nan")}, {"step": True}])
def test_a_line_without_a_step_is_named(tmp_path: Path, line: dict[str, Any]) -> None:
    append_line(tmp_path / METRICS, line)
    with pytest.raises(InputError, match=r"metrics\.jsonl: damaged: line 1 has no step; move the file away"):
        forget_steps_after(tmp_path, 3)


def start_by_torchrun(command: list[str]) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([sys.executable, *launcher, *command], stderr=subprocess.DEVNULL)


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[Path]:
    """The processes that it has started, in /proc."""
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False)
    return [Path("/proc") / pid for pid in found.stdout.split()]


def is_alive(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()  # dead, but nobody has asked how it ended
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_and_wait(launcher: subprocess.Popen[bytes]) -> None:
    ranks = ranks_of(launcher)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 120
    while any(map(is_alive, ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ranks_save_and_end_when_torchrun_is_killed(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run", schedule={"max_steps": 100_000}, data={"epochs": 10_000})
    launcher = start_by_torchrun(write_config(config, tmp_path / "run.toml"))
    wait_for_steps(config.output, 3, [launcher])
    kill_and_wait(launcher)
    [saved] = (config.output / "checkpoints").iterdir()
    assert checkpoint.step_of(saved) == len(read_lines(config.output / METRICS))


def test_ranks_end_when_torchrun_is_killed_while_they_import(workspace: Path, tmp_path: Path) -> None:
    launcher = start_by_torchrun(write_config(run(workspace, tmp_path / "run"), tmp_path / "run.toml"))
    deadline = time.monotonic() + 120
    while not ((ranks := ranks_of(launcher)) and all("libtorch" in (rank / "maps").read_text() for rank in ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kill_and_wait(launcher)
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_torchrun_restarts_what_a_killed_rank_brought_down(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run", schedule={"max_steps": 60, "checkpoint_every": 5})
    command = write_config(config, tmp_path / "run.toml")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for killed_at in (7, 20):
        wait_for_steps(config.output, killed_at, [process])
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        subprocess.run(["kill", "-9", found.stdout.split()[-1]], check=True)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (config.output / "model").is_dir()
    whole = run(workspace, tmp_path / "whole", schedule={"max_steps": 60, "checkpoint_every": 5})
    for process in start_ranks(write_config(whole, tmp_path / "whole.toml"), ranks=2):
        end(process)
    files = [(path.output / "model" / "model.safetensors").read_bytes() for path in (config, whole)]
    assert files[0] == files[1]
