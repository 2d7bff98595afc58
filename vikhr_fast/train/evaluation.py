"""Benchmarks along training: asked by all ranks together, and nothing of the training changes by it."""

from typing import TYPE_CHECKING, Any

from vikhr_fast.companions import tokenizer_file
from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.questions import BENCHMARK_NAMES, Question, questions_sha256
from vikhr_fast.model import Mistral
from vikhr_fast.ranks import Ranks
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.metrics import EVALUATIONS, MetricsWriter, read_lines
from vikhr_fast.train.sharding import reshard

if TYPE_CHECKING:
    from vikhr_fast.evaluate.harness import ShardedModel


def open_questions(config: TrainConfig) -> dict[str, list[Question]]:
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
    return {
        name: _spread(benchmark_questions(name, source, config.seed), wanted.limit)
        for name, source in sorted(wanted.tasks.items())
    }


def _spread(questions: list[Question], limit: int) -> list[Question]:
    """So many questions from all over the list: benchmarks are sorted by subject."""
    count = len(questions)
    return [questions[number * count // limit] for number in range(limit)] if 0 < limit < count else questions


class _InterruptedError(Exception):
    """A signal came; whoever sent it won't wait for thousands of questions."""


class Evaluations:
    """Asks the model the questions at the steps where that is due.

    Args:
        config: the run.
        questions: see `open_questions`.
        model: in training, on all ranks.
        ranks: this process's place.
        interruption: of the run.
        num_steps: of the whole run.
    """

    def __init__(
        self,
        config: TrainConfig,
        questions: dict[str, list[Question]],
        model: Mistral,
        ranks: Ranks,
        interruption: Interruption,
        num_steps: int,
    ) -> None:
        self._config, self._questions, self._model = config, questions, model
        self._ranks, self._interruption, self._num_steps = ranks, interruption, num_steps

    def owed(self, step: int, tokens: int, metrics: MetricsWriter) -> bool:
        """As `after`, where a run that was stopped then hadn't done it, or before the first step."""
        lines = read_lines(self._config.output / EVALUATIONS) if self._ranks.is_main else []
        is_done = any(line["step"] == step for line in lines)
        return self._ranks.most(is_done) == (1,) or self.after(step, tokens, metrics)

    def after(self, step: int, tokens: int, metrics: MetricsWriter) -> bool:
        """Evaluates where that is due, and records it. False: a signal came before the end, and nothing is recorded."""
        every = self._config.evaluation.every
        if not self._questions or not (step == self._num_steps or (every and step % every == 0)):
            return True
        try:
            results = self._evaluate(step)
        except _InterruptedError:
            return False
        finally:
            reshard(self._model)
        metrics.evaluation(step, tokens, results)
        return True

    def _evaluate(self, step: int) -> dict[str, dict[str, Any]]:
        from vikhr_fast.evaluate.benchmarks import BENCHMARKS, harness_task, run_task

        results = {}
        for benchmark, questions in self._questions.items():
            for name, description in BENCHMARKS[benchmark].descriptions.items():
                model = self._harness_model(f"evaluation after step {step}: {name}")
                result, _ = run_task(harness_task(name, description, questions), model)
                shown = {key: result[key] for key in ("accuracy", "standard_error", "chance", "questions")}
                results[name] = {**shown, "sha256": questions_sha256(questions)}
        return results

    def _harness_model(self, doing: str) -> "ShardedModel":
        from vikhr_fast.evaluate.harness import ShardedModel

        config, forwards = self._config, 0

        def advance() -> None:
            nonlocal forwards
            forwards += 1
            self._ranks.watch.enter(f"{doing}, forward {forwards}")  # each a phase: together they may take hours
            if self._ranks.most(self._interruption.exit_code)[0]:
                raise _InterruptedError

        return ShardedModel(
            self._model,
            load_encoder(config.model),
            self._ranks,
            sequence_length=config.data.sequence_length,
            micro_batch=config.batch.micro_batch,
            chunk_tokens=config.runtime.chunk_tokens or None,
            advance=advance,
        )
