"""Table 10 of the paper from a base of Llama 3's kind, by the paper's own grid on a tiny scale, to its evaluation."""

import json
from pathlib import Path

import pytest
from corpora import write_jsonl
from llama_3 import make_base

from vikhr_fast.cli import main
from vikhr_fast.config import PRESETS
from vikhr_fast.experiments.inputs import Conversations, make_conversations
from vikhr_fast.experiments.sample.text import RUSSIAN_VALIDATION
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

pytestmark = pytest.mark.slow
TINY = {
    'launcher = ["torchrun", "--standalone", "--nproc-per-node", "gpu"]\n': "",
    "--config vikhr-7b-instruct": "--config TINY",
    "train-reward {preferences}": "train-reward {preferences} --encoder {encoder} --maximum-tokens 64 --epochs 1",
    "[stages]\n": '[inputs.encoder]\nhelp = "of the reward model"\n\n[stages]\n',
}
"""What is another at the tiny scale."""


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def test_the_grid_of_the_paper_runs_from_llama_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "llama-3"
    make_base(base)
    text = next(RUSSIAN_VALIDATION.glob("*.txt"))
    train_tokenizer(TrainTokenizer(input=(text,), output=tmp_path / "pieces", vocab_size=600))
    made = tmp_path / "conversations"
    make_conversations(Conversations(made, tmp_path / "pieces"))
    held_out = [line for line in (made / "held-out.jsonl").read_text().splitlines() if '"russian"' in line]
    (tmp_path / "held-out.jsonl").write_text("\n".join(held_out[:12]) + "\n")
    config = (
        "[data]\nsequence_length = 1024\n[batch]\nmicro_batch = 2\nsequences_per_step = 4\n"
        "[optimizer]\nlearning_rate = 1e-2\n"
        '[kl]\nweight = 0.0\n[runtime]\ndtype = "float32"\n[schedule]\nmax_steps = 6\n'
    )
    (tmp_path / "tiny.toml").write_text(config)
    grid = (PRESETS / "ablations" / "paper" / "instruct.toml").read_text(encoding="utf-8")
    for old, new in TINY.items():
        assert old in grid
        grid = grid.replace(old, new.replace("TINY", str(tmp_path / "tiny.toml")))
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "instruct.toml").write_text(grid)
    inputs = {
        "llama-3": base, "conversations": made / "noisy.jsonl", "held-out": tmp_path / "held-out.jsonl",
        "source": "russian", "preferences": made / "preferences.jsonl", "encoder": made / "encoder",
        "english-held-out-text": text,
    }  # fmt: skip
    words = [str(word) for item in inputs.items() for word in item]
    scale = ["--scale", str(tmp_path / "grids"), "--seeds", "1", "--output", str(tmp_path / "out")]
    run(["ablate", "instruct", *scale, "--inputs", *words])
    table = json.loads((tmp_path / "out" / "instruct" / "ablation.json").read_text())
    bits = {name: arm["figures"]["answers.bits_per_byte"]["mean"] for name, arm in table["arms"].items()}
    assert all(bits[name] < bits["none"] - 0.3 for name in ("everything", "deduplicated", "filtered")), bits

    tuned = next((tmp_path / "out").glob("**/filtered/model"))
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Что такое чебурек?"}, {"prompt": " Кто? "}])
    answers = tmp_path / "answers.jsonl"
    few = ["--max-tokens", "4", "--device", "cpu"]
    run(["generate", "batch", str(tuned), "--input", str(tmp_path / "prompts.jsonl"), "--output", str(answers), *few])
    assert all("answer" in json.loads(line) for line in answers.read_text().splitlines())
    capsys.readouterr()
    run(["generate", "compare", "--models", "base", str(base), "tuned", str(tuned), *few])
    assert "Latin-script words" in capsys.readouterr().out
    run(["generate", "complete", str(tuned), "--text", "Утром", *few])
    assert capsys.readouterr().out.startswith("Утром")
    question = {"question": "Где дом?", "choices": ["там", "тут", "нигде"], "answer": 1}
    write_jsonl(tmp_path / "mmlu.jsonl", [question, {**question, "question": "Где сад?"}])
    evaluated = tmp_path / "evaluated"
    tasks = ["--tasks", f"ru_mmlu={tmp_path / 'mmlu.jsonl'}", "--text", f"held={text}", "--device", "cpu"]
    run(["evaluate", str(tuned), "--output", str(evaluated), *tasks])
    assert json.loads((evaluated / "results.json").read_text())["tasks"]["ru_mmlu"]["questions"] == 2
    for directory in (evaluated, tuned.parent, tmp_path / "out" / "instruct", base):
        run(["report", str(directory)])
    run(["doctor", str(tuned)])
    said = capsys.readouterr().out
    assert "answers end with <|eot_id|>" in said
    assert "mend" not in said
