"""Our checkpoints behind the model interface of EleutherAI's lm-evaluation-harness."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from vikhr_fast.corpus.chat import AnswerLog, request_hash
from vikhr_fast.evaluate.likelihood import Likelihood, encode_pair, likelihoods
from vikhr_fast.model import Mistral
from vikhr_fast.tokenizer.load import Encoder


class ChoiceModel(LM):
    """A model that is asked for choices alone, by `loglikelihood`."""

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """No task here asks for it: texts are scored by `evaluate.perplexity`."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """No task here asks for it."""
        raise NotImplementedError


class HarnessModel(ChoiceModel):
    """A model that scores the requests of the harness, and keeps a log of what it has scored.

    Args:
        model: not sharded.
        encoder: its tokenizer.
        log: opened; what is in it isn't computed again.
        batch: questions scored at once, of about the same length.
    """

    def __init__(self, model: Mistral, encoder: Encoder, log: AnswerLog, batch: int) -> None:
        super().__init__()
        self._model, self._encoder, self._log, self._batch = model, encoder, log, batch
        self.advance: Callable[[int], None] = lambda _: None
        """Is told of questions that are through."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each request's continuation after its context: the log-likelihood, and whether it is greedy."""
        questions: dict[tuple[str, int], list[int]] = {}
        for number, request in enumerate(requests):
            questions.setdefault((request.task_name, request.doc_id), []).append(number)
        found: dict[int, Likelihood] = {}
        todo = []
        for numbers in questions.values():
            key = request_hash({"requests": [requests[number].args for number in numbers]})
            if entry := self._log.final(key):
                found |= {n: Likelihood(*answer) for n, answer in zip(numbers, entry["answers"], strict=True)}
                self.advance(1)
            else:
                pairs = [encode_pair(self._encoder, *requests[number].args) for number in numbers]
                todo.append((key, numbers, pairs))
        todo.sort(key=lambda own: -max(len(pair.context) + len(pair.continuation) for pair in own[2]))
        for start in range(0, len(todo), self._batch):
            batch = todo[start : start + self._batch]
            scored = likelihoods(self._model, [pairs for _, _, pairs in batch])
            for (key, numbers, _), answers in zip(batch, scored, strict=True):
                self._log.add({"request": key, "final": True, "answers": answers})
                found |= dict(zip(numbers, answers, strict=True))
            self.advance(len(batch))
        return [(own.log, own.is_greedy) for own in (found[number] for number in range(len(requests)))]
