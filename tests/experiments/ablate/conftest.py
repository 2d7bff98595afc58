"""A grid of seconds: one tokenizer, two seeds, two learning rates."""

from pathlib import Path

import pytest

from vikhr_fast.experiments.sample.text import RUSSIAN_TRAIN

PRESET = """
data = {sequence_length = 64, epochs = 9}
batch = {micro_batch = 4, sequences_per_step = 4}
optimizer = {warmup_steps = 2}
kl = {weight = 0.0}
runtime = {device = "cpu", dtype = "float32", threads = 1}
schedule = {max_steps = 24, validate_every = 8, checkpoint_every = 4}
"""
STAGES = """
[inputs.text]
help = "the text"

[stages]
tokenizer.run = "tokenizer train --input {text} --vocab-size 400"
shards.run = "corpus shard --input {text} --tokenizer {tokenizer}"
start.run = "inputs start --tokenizer {tokenizer} --hidden-size 64 --layers 1 --seed {seed}"
"""
GRID = """
name = "kl"
table = 9
title = "two learning rates"
text = "what was trained on"
control = "slow"
seeds = 2
sequence_length = 64
include = ["stages.toml"]
notes = ["A note."]

[stages.slow]
run = '''train --config PRESET --model {start} --seed {seed} --optimizer.learning-rate 1e-4 --data.train text {shards}
    --data.validation russian {shards} english {shards}'''

[stages.fast]
run = '''train --config PRESET --model {start} --seed {seed} --optimizer.learning-rate 3e-3 --data.train text {shards}
    --data.validation russian {shards} english {shards} --schedule.max-steps {steps:slow:slow}'''

[arms.slow]
label = "slow"
model = "{slow}/model"
runs = ["{slow}"]
held_out = {russian = "{shards}"}

[arms.fast]
label = "fast"
model = "{fast}/model"
runs = ["{fast}"]
words = ["{text}"]
held_out = {russian = "{shards}"}

[[columns]]
name = "russian.perplexity"
label = "perplexity"
digits = 1

[[columns]]
name = "russian.bits_per_byte"
label = "bits per byte"

[[columns]]
name = "english_at_equal_russian"
label = "at equal Russian"
"""


@pytest.fixture
def grids(tmp_path: Path) -> Path:
    """A directory with the grid `kl` and a `text.txt` of about 8 KB."""
    directory = tmp_path / "grids"
    directory.mkdir()
    (directory / "preset.toml").write_text(PRESET)
    (directory / "stages.toml").write_text(STAGES)
    (directory / "kl.toml").write_text(GRID.replace("PRESET", str(directory / "preset.toml")))
    text = (RUSSIAN_TRAIN / "stories.txt").read_text(encoding="utf-8")
    (directory / "text.txt").write_text(text[:4500], encoding="utf-8")
    return directory
