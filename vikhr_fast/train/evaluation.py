"""Benchmarks along training: asked by all ranks together, and nothing of the training changes by it."""

from dataclasses import dataclass
from typing import Any

from vikhr_fast.config import TrainConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import reshard
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.questions import BENCHMARK_NAMES, CHANGES, BenchmarkQuestions, Question, questions_sha256
from vikhr_fast.io.console import logger
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.train.metrics import EVALUATIONS, MetricsWriter
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState


def open_questions(config: TrainConfig) -> dict[str, BenchmarkQuestions]:
    """The questions of each benchmark that the configuration names.

    Raises:
        InputError: an unknown benchmark, questions that cannot be used, no tokenizer, or no lm-evaluation-harness.
    """
    wanted = config.evaluation
    if not wanted.tasks:
        if wanted.every or wanted.limit:
            raise InputError("evaluation.tasks: none; name at least one, as in --evaluation.tasks ru_mmlu FILE")
        return {}
    if unknown := sorted(wanted.tasks.keys() - set(BENCHMARK_NAMES)):
        raise InputError(f"evaluation.tasks: {', '.join(unknown)}: must be of {', '.join(BENCHMARK_NAMES)}")
    try:
        from vikhr_fast.evaluate.benchmarks import benchmark_questions
    except ImportError as error:
        raise InputError(f"evaluation.tasks: needs {error.name}; pip install 'vikhr-fast[eval]'") from None
    if tokenizer_file(config.model) is None:
        raise InputError(f"{config.model}: no tokenizer, which evaluation.tasks needs; copy its tokenizer.model there")
    questions = {}
    for name, source in sorted(wanted.tasks.items()):
        found = benchmark_questions(name, source, config.seed)
        if said := ", ".join(f"{count:,} {CHANGES[key]}" for key, count in found.counts.items() if count):
            logger.info(f"evaluation.tasks {name}: {len(found.asked):,} questions, {said}")
        questions[name] = found._replace(asked=_spread(found.asked, wanted.limit))
    return questions


def _spread(questions: list[Question], limit: int) -> list[Question]:
    """So many questions from all over the list: benchmarks are sorted by subject."""
    if not 0 < limit < len(questions):
        return questions
    return [questions[number * len(questions) // limit] for number in range(limit)]


@dataclass(frozen=True)
class Evaluations:
    """Asks the model the questions at the steps where that is due."""

    config: TrainConfig
    questions: dict[str, BenchmarkQuestions]  # see `open_questions`
    model: Mistral  # in training, on all ranks
    ranks: Ranks
    interruption: Interruption
    num_steps: int  # of the whole run

    def run_if_missed(self, state: TrainState, metrics: MetricsWriter) -> None:
        """As `run_if_due`, before the first step and where a run that was stopped at this one hadn't done it."""
        if not metrics.has(EVALUATIONS, state.step):
            self.run_if_due(state, metrics)

    def run_if_due(self, state: TrainState, metrics: MetricsWriter) -> None:
        """Evaluates and records it, at the last step and every so many.

        Raises:
            Interrupted: a signal came before the end, and nothing is recorded.
        """
        if self.questions and (state.step == self.num_steps or state.is_due(self.config.evaluation.every)):
            try:
                results = self._evaluate(state.step)
            finally:
                reshard(self.model)
            metrics.evaluation(state.step, state.tokens, results)

    def _evaluate(self, step: int) -> dict[str, dict[str, Any]]:
        from vikhr_fast.evaluate.benchmarks import BENCHMARKS, harness_task, run_task
        from vikhr_fast.evaluate.harness import ShardedModel

        config, results = self.config, {}
        for benchmark, (questions, counts, _) in self.questions.items():
            for name, description in BENCHMARKS[benchmark].descriptions.items():
                advance = self.interruption.advancing(f"evaluation after step {step}: {name}", self.ranks)
                model = ShardedModel(
                    self.model, load_encoder(config.model), self.ranks, config.data.sequence_length,
                    config.batch.micro_batch, config.runtime.chunk_tokens or None, advance,
                )  # fmt: skip
                result, _ = run_task(harness_task(name, description, questions), model)
                shown = {key: result[key] for key in ("accuracy", "standard_error", "chance", "questions")}
                changes = {key: count for key, count in counts.items() if count}
                results[name] = {**shown, "sha256": questions_sha256(questions), **changes}
        return results
