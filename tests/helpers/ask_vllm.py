"""What vLLM makes of a model directory: ids of texts, and what it generates greedily after ids.

python ask_vllm.py question.json answer.json
"""

import json
import os
import sys
from pathlib import Path

# One process, one thread, little memory: the model is tiny, and the machine may be busy.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    """Answers the question."""
    from vllm import LLM, SamplingParams

    question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = LLM(model=question["model"], dtype="float32", enforce_eager=True, max_model_len=256)
    tokenizer = model.get_tokenizer()
    encoded = [
        tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in question["texts"]
    ]
    sampling = SamplingParams(temperature=0, max_tokens=question["new_tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in question["prompts"]]
    outputs = [output.outputs[0] for output in model.generate(prompts, sampling, use_tqdm=False)]
    generated = [{"ids": list(output.token_ids), "text": output.text} for output in outputs]
    answer = {"ids": encoded, "generated": generated}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
