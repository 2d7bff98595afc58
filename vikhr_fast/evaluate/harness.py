"""Our checkpoints behind the model interface of EleutherAI's lm-evaluation-harness."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM

from vikhr_fast.data.packing import IGNORED
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.likelihood import Likelihood, Pair, cut_pair, encode_pair, likelihoods
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.llm.endpoint import request_hash
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import Encoder


class _ChoiceModel(LM):
    """A model that is asked for choices alone, by `loglikelihood`."""

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """No task here asks for it: texts are scored by `evaluate.perplexity`."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """No task here asks for it."""
        raise NotImplementedError


class HarnessModel(_ChoiceModel):
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
                todo.append((key, numbers, [encode_pair(self._encoder, *requests[n].args) for n in numbers]))
        todo.sort(key=lambda own: -max(len(pair.context) + len(pair.continuation) for pair in own[2]))
        for start in range(0, len(todo), self._batch):
            batch = todo[start : start + self._batch]
            scored = likelihoods(self._model, [pairs for _, _, pairs in batch])
            if not all(math.isfinite(answer.log) for answers in scored for answer in answers):
                raise InputError("a log-likelihood of the model is no finite number: its weights hold NaN or infinity")
            for (key, numbers, _), answers in zip(batch, scored, strict=True):
                self._log.add({"request": key, "final": True, "answers": answers})
                found |= dict(zip(numbers, answers, strict=True))
            self.advance(len(batch))
        return [found[number] for number in range(len(requests))]


class ShardedModel(_ChoiceModel):
    """Scores the requests of the harness on all ranks at once; each gets every answer.

    A sharded model runs only as a whole, the same number of times on each rank, so that nothing is cached as
    `HarnessModel` does: contexts and continuations are packed as in training, into as many positions.

    Args:
        model: sharded over `ranks`.
        encoder: its tokenizer.
        ranks: who shares the work.
        sequence_length: positions of a sequence in training.
        micro_batch: sequences a forward.
        chunk_tokens: tokens whose logits exist at once; None lets the loss head choose.
        advance: called on all ranks before each forward; what it raises ends the evaluation.
    """

    def __init__(
        self,
        model: Mistral,
        encoder: Encoder,
        ranks: Ranks,
        sequence_length: int,
        micro_batch: int,
        chunk_tokens: int | None,
        advance: Callable[[], None],
    ) -> None:
        super().__init__()
        self._model, self._encoder, self._ranks = model, encoder, ranks
        self._sequence_length, self._positions = sequence_length, sequence_length * micro_batch
        self._chunk_tokens, self._advance = chunk_tokens, advance

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each request's continuation after its context the log-likelihood; none is said to be greedy.

        Raises:
            InputError: a continuation alone has more tokens than the model positions.
        """
        longest = self._model.config.max_position_embeddings
        texts = [cut_pair(encode_pair(self._encoder, *request.args), longest) for request in requests]
        packs = _packed([len(text.context) + len(text.continuation) - 1 for text in texts], self._positions)
        logs = torch.zeros(len(texts), dtype=torch.float64, device=self._ranks.device)
        for start in range(0, len(packs), self._ranks.count):
            self._advance()
            mine = start + self._ranks.rank
            pack = packs[min(mine, len(packs) - 1)]  # every rank must run the model
            found = self._score([texts[number] for number in pack])
            if mine < len(packs):
                logs[pack] = found
        return [(log, False) for log in self._ranks.all_reduce_sum(logs).tolist()]

    @torch.no_grad()
    def _score(self, texts: list[Pair]) -> torch.Tensor:
        """[texts] log-likelihoods, in one forward."""
        device = self._ranks.device
        tokens, targets, ends = [], [], [0]
        for context, continuation in texts:
            tokens += [*context, *continuation][:-1]
            targets += [IGNORED] * (len(context) - 1) + continuation
            ends.append(len(tokens))
        while len(tokens) < self._positions:  # as `PackedCorpus.batch` fills a micro-batch up
            padding = min(self._sequence_length, self._positions - len(tokens))
            tokens += [0] * padding
            targets += [IGNORED] * padding
            ends.append(len(tokens))
        cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
        hidden = self._model(torch.tensor(tokens, device=device), cu_seqlens=cu_seqlens)
        expected = torch.tensor(targets, device=device)
        _, ce, _ = self._model.head(hidden, targets=expected, reduction="sum", chunk_tokens=self._chunk_tokens)
        return torch.stack([-one.double().sum() for one in ce.split(cu_seqlens.diff().tolist())])[: len(texts)]


def _packed(lengths: list[int], positions: int) -> list[list[int]]:
    """The numbers of the texts that go into each forward, in their order."""
    packs: list[list[int]] = []
    left = 0
    for number, length in enumerate(lengths):
        if length > left:
            packs.append([])
            left = positions
        packs[-1].append(number)
        left -= length
    return packs
