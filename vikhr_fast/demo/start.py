"""The model that a demo begins with: a Mistral of a few million random weights."""

from pathlib import Path

from vikhr_fast.files import atomic_directory
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import MODEL_NAME, export_tokenizer

HEAD_SIZE = 32
_POSITIONS = 1024


def write_start(output: Path, tokenizer: Path, hidden_size: int, layers: int, seed: int) -> None:
    """Writes a Hugging Face directory, complete or not at all.

    Args:
        output: directory to make.
        tokenizer: directory of its tokenizer.
        hidden_size: width, a multiple of 64.
        layers: how many.
        seed: of the weights.
    """
    from vikhr_fast.model import Mistral, ModelConfig
    from vikhr_fast.model_config import write_config
    from vikhr_fast.weights import write_weights

    encoder = BpeEncoder.from_file(tokenizer / MODEL_NAME)
    heads = hidden_size // HEAD_SIZE
    config = ModelConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=_POSITIONS,
        bos_token_id=encoder.bos_id,
        eos_token_id=encoder.eos_id,
    )
    model = Mistral(config, seed=seed)
    with atomic_directory(output) as directory:
        write_config(directory, config, model.lm_head.weight.dtype)
        write_weights(directory, model.state_dict())
        export_tokenizer(tokenizer / MODEL_NAME, directory)
