"""`vikhr-fast train`: settings from a file, a preset and flags; then the run, or what it would be."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from vikhr_fast.config import TrainConfig, config_values, config_with_gaps, read_toml, train_config
from vikhr_fast.io.files import json_text


@dataclass(frozen=True)
class Train:
    """Trains all weights with CE + KL (paper, section 3.2). Start it under torchrun for several GPUs.

    An interrupted run is resumed by the same command, bit for bit.
    """

    settings: Annotated[TrainConfig, arg(name="")]
    """The configuration."""
    config: Path | None = None
    """TOML file, or the name of a preset; flags override it."""
    dry_run: bool = False
    """Check inputs and settings, say what would be done, and stop."""
    print_config: bool = False
    """Print the resolved settings as JSON and stop."""
    replay_incident: int | None = None
    """Run the sequences of this skipped step (its number in OUTPUT/incidents.jsonl) one by one from the last checkpoint
    before it, show their losses and texts, and stop."""


def read_options(prog: str, args: list[str]) -> Train:
    """The options; the flags' defaults are taken from the file or preset that --config names.

    Raises:
        InputError: a wrong configuration.
        SystemExit: wrong flags.
    """
    named = [
        word.partition("=")[2] if "=" in word else after
        for word, after in zip(args, [*args[1:], ""], strict=False)
        if word.partition("=")[0] == "--config"
    ]
    path = named[0] if named else ""
    default = Train(config_with_gaps(read_toml(Path(path)) if path else {}, path, tyro.MISSING))
    options = tyro.cli(Train, prog=prog, args=args, default=default)
    return replace(options, settings=train_config(asdict(options.settings), "train"))


def run_training(options: Train) -> str | Path | None:
    """Trains; returns the model's directory on rank 0. Or says what it would do, or what an incident was."""
    settings = options.settings
    if options.print_config:
        return json_text(config_values(settings), ensure_ascii=True, indent=2)
    from vikhr_fast.train.inputs import describe, open_inputs
    from vikhr_fast.train.loop import train

    if options.dry_run:
        return describe(settings, open_inputs(settings), int(os.environ.get("WORLD_SIZE", 1)))
    if options.replay_incident is not None:
        from vikhr_fast.io.console import PlainConsole
        from vikhr_fast.train.replay import replay_incident, replay_table

        PlainConsole().print(replay_table(replay_incident(settings, options.replay_incident)))
        return None
    model = train(settings)
    return model if int(os.environ.get("RANK", 0)) == 0 else None
