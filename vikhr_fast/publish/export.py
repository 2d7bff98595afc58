"""A training checkpoint as a Hugging Face directory, with tokenizer and model card."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jinja2 import Environment, StrictUndefined, TemplateError
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.plain import as_markdown
from vikhr_fast.model.config import read_config, write_config
from vikhr_fast.model.weights import write_weights
from vikhr_fast.tokenizer.files import companions
from vikhr_fast.train.checkpoint import complete_checkpoints, read_state, step_of, verify
from vikhr_kernels import join_master

_CARD = Path(__file__).parent.parent / "templates" / "model_card.md"
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Export:
    """A run's checkpoint as a Hugging Face directory: weights, tokenizer, model card."""

    run: Path
    """Run directory of `vikhr-fast train`."""
    output: Path
    """Directory to be made."""
    step: int | None = None
    """Which checkpoint; none is the last."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """To store the weights in; float32 is the masters themselves, whichever way the run kept them."""


def export_checkpoint(options: Export) -> Path:
    """Writes the model, complete or absent, one tensor at a time; returns its directory.

    Raises:
        InputError: no such run or checkpoint, or a damaged one.
    """
    record = options.run / "config.json"
    settings = read_json(record, "give the --output of a training run")
    if not isinstance(settings.get("model"), str):
        raise InputError(f"{record}: damaged: it names no model")
    base = Path(settings["model"])
    checkpoint = _choose(options)
    verify(checkpoint)
    metadata = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    stored = {name: entry for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}
    config = read_config(base)

    def read(name: str, dtype: torch.dtype) -> Tensor:
        value = torch.empty(stored[name].size, dtype=dtype)
        load({name: value}, checkpoint_id=checkpoint, no_dist=True)
        return value

    def value_of(name: str) -> Tensor:
        # read in the dtype that it is kept in: the loader converts where they differ
        value = read(f"model.{name}", stored[f"model.{name}"].properties.dtype)
        if options.dtype == "float32" and (remainder := f"optimizer.state.{name}.remainder") in stored:
            value = join_master(value, read(remainder, torch.int16))
        return value

    dtype = _DTYPES[options.dtype]
    tensors = {
        name.removeprefix("model."): torch.empty(entry.size, dtype=dtype, device="meta")
        for name, entry in stored.items()
        if name.startswith("model.")
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, finalize=as_markdown)
    template = environment.from_string(_CARD.read_text(encoding="utf-8"))
    try:
        card = template.render(settings=settings, state=read_state(checkpoint))
    except (TemplateError, TypeError, AttributeError) as error:
        raise InputError(f"{record}: damaged: not the settings of a training run: {error}") from None
    with atomic_directory(options.output) as temporary:
        write_config(temporary, config, dtype)
        write_weights(temporary, tensors, value_of)
        for path in companions(base):
            shutil.copyfile(path, temporary / path.name)
        write_text(temporary / "README.md", card)
    return options.output


def _choose(options: Export) -> Path:
    directory = options.run / "checkpoints"
    checkpoints = {step_of(path): path for path in complete_checkpoints(directory)}
    if not checkpoints:
        raise InputError(f"{directory}: no checkpoint")
    step = max(checkpoints) if options.step is None else options.step
    if step not in checkpoints:
        raise InputError(f"{directory}: no checkpoint of step {step}; there are {', '.join(map(str, checkpoints))}")
    return checkpoints[step]
