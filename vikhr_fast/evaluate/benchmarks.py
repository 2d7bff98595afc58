"""The benchmarks of the paper's section 4.2 as tasks of lm-evaluation-harness, over questions from anywhere.

The harness's own files describe tasks; those in `tasks/` are ours. Only where the questions come from is replaced.
"""

import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.api.task
import lm_eval.tasks
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as run_harness

from vikhr_fast.evaluate.harness import HarnessModel
from vikhr_fast.evaluate.options import points_at_others
from vikhr_fast.evaluate.questions import (
    LETTERS,
    BenchmarkQuestions,
    Question,
    choice_question,
    inference_question,
    read_questions,
)

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
lm_eval.api.task.tqdm = partial(lm_eval.api.task.tqdm, disable=True)  # its bars would run through ours

_OURS = Path(__file__).parent / "tasks"
_XNLI = Path(lm_eval.tasks.__file__).parent / "xnli"


class Benchmark(NamedTuple):
    """Where a benchmark's tasks are described, and what its questions look like."""

    descriptions: dict[str, tuple[Path, ...]]
    """Files of each task; what a later one says goes before an earlier one."""
    parse: Callable[[Mapping[str, Any]], Question]
    is_shuffled: bool = False


BENCHMARKS = {
    "ruxnli": Benchmark(
        {
            "ruxnli": (_XNLI / "xnli_common_yaml", _XNLI / "xnli_ru.yaml"),
            "ruxnli_letters": (_OURS / "ruxnli_letters.yaml",),
        },
        inference_question,
    ),
    "ru_mmlu": Benchmark({"ru_mmlu": (_OURS / "ru_mmlu.yaml",)}, choice_question),
    "ru_mmlu_pro": Benchmark({"ru_mmlu_pro": (_OURS / "ru_mmlu_pro.yaml",)}, choice_question, is_shuffled=True),
}


def benchmark_questions(name: str, source: Path, seed: int, keep_order: bool = False) -> BenchmarkQuestions:
    """Reads the questions of a benchmark; InputError where there are none.

    Args:
        name: of the benchmark.
        source: see `read_questions`.
        seed: of the order of options, where the benchmark shuffles them.
        keep_order: asks every question as it is, not only those whose options point at others.
    """
    benchmark = BENCHMARKS[name]
    questions, stripped, rejected = read_questions(source, benchmark.parse)
    kept = 0
    for number, question in enumerate(questions):
        is_kept = benchmark.is_shuffled and (keep_order or points_at_others(question["choices"]))
        kept += is_kept
        if benchmark.is_shuffled and not is_kept:  # so that an answer's place tells nothing
            choices = question["choices"]
            order = list(range(len(choices)))
            random.Random(f"{seed}:{number}").shuffle(order)
            question |= {"choices": [choices[index] for index in order], "answer": order.index(question["answer"])}
        if "choices" in question:
            question["letters"] = list(LETTERS[: len(question["choices"])])
    counts = {"kept_in_order": kept, "stripped": stripped, "rejected": len(rejected)}
    return BenchmarkQuestions(questions, counts, rejected)


def harness_task(name: str, description: Sequence[Path], questions: list[Question]) -> ConfigurableTask:
    """A task of the harness over these questions."""
    made = datasets.Dataset.from_list(questions)
    config: dict[str, Any] = {}
    for file in description:
        config |= yaml.safe_load(file.read_text(encoding="utf-8"))
    config.pop("include", None)
    config |= {"task": name, "num_fewshot": 0, "custom_dataset": lambda **_: {"test": made}}
    config |= {"training_split": None, "validation_split": None, "test_split": "test"}
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(0)
    return task


def run_task(task: ConfigurableTask, model: HarnessModel) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task's result, and of each question what the model chose, as JSON values."""
    name = task.config.task
    samples = run_harness(model, {name: task}, bootstrap_iters=0)["samples"][name]
    samples.sort(key=lambda sample: sample["doc_id"])
    chosen, subjects = [], defaultdict(list)
    for sample in samples:
        logs = [answer[0] for answer in sample["filtered_resps"]]
        chosen.append({"answer": sample["target"], "chosen": logs.index(max(logs)), "log_likelihoods": logs})
        subjects[sample["doc"]["subject"]].append(sample["acc"])
    result = {
        "task": name,
        **_accuracy([sample["acc"] for sample in samples]),
        "chance": sum(1 / len(sample["filtered_resps"]) for sample in samples) / len(samples),
        "subjects": {subject: _accuracy(correct) for subject, correct in sorted(subjects.items())},
    }
    return result, chosen


def _accuracy(correct: Sequence[float]) -> dict[str, Any]:
    """Accuracy@1 with the standard error of a mean; one question has none."""
    count, mean = len(correct), sum(correct) / len(correct)
    error = math.sqrt(mean * (1 - mean) / (count - 1)) if count > 1 else None
    return {"accuracy": mean, "standard_error": error, "questions": count}
