"""What is measured of one arm with one seed."""

from dataclasses import dataclass, field
from pathlib import Path

from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.experiments.comparison import read_validations
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.files import write_json
from vikhr_fast.model.devices import device_of
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.load import find_tokenizer
from vikhr_fast.train.metrics import METRICS

_MICRO_BATCH = 8
_ANSWER_TOKENS, _ANSWERS = 64, 2
_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Score:
    """Scores a model, and adds up what its runs cost."""

    model: Path
    """Hugging Face directory."""
    output: Path
    """JSON file to write."""
    held_out: dict[str, Path] = field(default_factory=dict)
    """Held-out shards by name."""
    runs: tuple[Path, ...] = ()
    """Training runs whose tokens and FLOPs are added up."""
    words: tuple[Path, ...] = ()
    """Text to count tokens a word in."""
    questions: Path | None = None
    """Conversations (.jsonl) whose questions the model answers."""
    reward: Path | None = None
    """Directory of the reward model that scores its answers."""
    seed: int = 0
    """Of what the model answers."""
    sequence_length: int = 1024
    """Tokens that are read at once."""


def score(options: Score) -> None:
    """Writes a unit: `figures` by column, `curve` of the last run's validations.

    Seconds aren't among them, so that a unit done again is the same to the last bit.

    Raises:
        InputError: a model, shards or run that is missing or damaged.
    """
    import vikhr_kernels
    from vikhr_fast.model.mistral import Mistral
    from vikhr_kernels import reference

    place, dtype = device_of("auto")
    ops = vikhr_kernels if place.type == "cuda" else reference
    model = Mistral.from_pretrained(options.model, dtype, place, ops=ops).requires_grad_(False)
    figures: dict[str, float] = {}
    for name, shards in options.held_out.items():
        found = score_shards(model, TokenShards.open(shards), window=options.sequence_length, micro_batch=_MICRO_BATCH)
        figures[f"{name}.perplexity"] = found.perplexity(f"{options.model}: {name}")
        figures[f"{name}.bits_per_byte"] = found.bits_per_byte
    lines = [read_lines(run / METRICS) for run in options.runs]
    if empty := [str(run) for run, own in zip(options.runs, lines, strict=True) if not own]:
        raise InputError(f"{', '.join(empty)}: no steps in it; not the directory of a training run")
    try:
        figures["tokens"] = sum(own[-1]["tokens"] for own in lines)
        figures["teraflop"] = sum(line["flops"] + line["reference_flops"] for own in lines for line in own) / 1e12
    except (KeyError, TypeError) as error:
        runs = ", ".join(map(str, options.runs))
        raise InputError(f"{runs}: {METRICS}: damaged ({error!r}); delete the run and do it again") from None
    if options.words:
        figures["tokens_per_word"] = measure([find_tokenizer(options.model)], options.words)[0]["tokens_per_word"]
    if options.questions and options.reward:
        figures["reward"] = _reward(options.model, options.questions, options.reward, options.seed)
    curve = read_validations(options.runs[-1]) if options.runs else []
    write_json(options.output, {"figures": figures, "curve": curve})


def _reward(model: Path, questions: Path, reward: Path, seed: int) -> float:
    """Mean reward of several answers to each question, drawn from the model's distribution."""
    from vikhr_fast.chat.conversation import read_conversations
    from vikhr_fast.inference.engine import ChatEngine
    from vikhr_fast.inference.sampling import Sampling
    from vikhr_fast.instruct.reward import Answered, RewardModel

    chats = [one.messages[:-1] for one in read_conversations([questions])]
    engine = ChatEngine(model)
    prompts = [engine.prompt(chat) for chat in chats]
    sampling = Sampling(max_tokens=_ANSWER_TOKENS, temperature=1.0, seed=seed)
    answered = []
    for draw in range(_ANSWERS):
        numbers = range(draw * len(prompts), (draw + 1) * len(prompts))
        for chat, answer in zip(chats, engine.answer(prompts, sampling, numbers), strict=True):
            answered.append(Answered("\n\n".join(message.content for message in chat), answer.text))
    scores = RewardModel.load(reward).score(answered, _BATCH_TOKENS)
    return float(scores.mean())
