"""A SentencePiece BPE model as the files that transformers, vLLM and llama.cpp read, with the same ids in each.

`tokenizer.json` restates the model: SentencePiece joins the adjacent pair whose result is the piece with the best
score, leftmost first; Hugging Face's BPE joins the pair whose merge rule stands first in a list. They agree when
the list holds every split of every piece into two pieces, ordered by the score of the result, and the text is
prepared in the same way: `▁` in front, spaces as `▁`, nothing else changed and nothing split beforehand.

The rule for chats: control pieces are inserted by id, and each stretch of text between them is encoded as a text of
its own, with its own `▁` in front. `tokenizer.json` and llama.cpp both do exactly this with a rendered template.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory, write_json, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.tokenizer.added_tokens import CONTROL_FORM, read_roles, refuse_added
from vikhr_fast.tokenizer.chat_template import CHAT_TEMPLATES, TEMPLATES, read_template, try_template
from vikhr_fast.tokenizer.files import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    refuse_tekken,
    tokenizer_file,
)
from vikhr_fast.tokenizer.json_encoder import refuse_fatal
from vikhr_fast.tokenizer.model_file import read_model_bytes
from vikhr_fast.tokenizer.special_tokens import added_tokens, begins_with, write_configuration
from vikhr_fast.tokenizer.tekken import export_tekken, tekken_file

MODEL_NAME = "tokenizer.model"
CHAT_PIECES = ("<|im_start|>", "<|im_end|>")

# Piece types of SentencePiece's model format, and the settings that tokenizer.json can restate.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_EXACT_NORMALIZER = {"remove_extra_whitespaces": False, "add_dummy_prefix": True, "escape_whitespaces": True}


@dataclass(frozen=True)
class ExportTokenizer:
    """Writes a SentencePiece BPE model as the files that transformers, vLLM and llama.cpp read, with the same ids.

    Mistral's tekken.json becomes a tokenizer.json. Of a directory whose tokenizer is a byte-level tokenizer.json, the
    files are copied as they are, with another chat template.
    """

    model: Positional[Path]
    """A SentencePiece .model file, a tekken.json, or a directory with tokenizer.model, tekken.json or tokenizer.json:
    the first of them that is there."""
    output: Path
    """Directory to make."""
    chat_template: Path | None = None
    """chatml, llama-3, mistral-instruct, or a file with a Jinja chat template; without it ChatML if the model has its
    pieces."""


def export(options: ExportTokenizer) -> None:
    """Writes `options.output`, complete or not at all.

    InputError as `export_tokenizer` or `export_tekken`, or for the template.
    """
    template = options.chat_template
    source = None if template is None else read_template(CHAT_TEMPLATES.get(str(template), template))
    with atomic_directory(options.output) as directory:
        if tekken := tekken_file(options.model):
            export_tekken(tekken, directory, source)
        elif options.model.is_dir() and tokenizer_file(options.model) == options.model / TOKENIZER_JSON:
            _copy_with_template(options.model, directory, source)
        else:
            export_tokenizer(find_model(options.model), directory, source)
        if source is not None:
            try_template(source, str(template), read_roles(directory))


def _copy_with_template(model: Path, directory: Path, chat_template: str | None) -> None:
    """Writes the files of a byte-level tokenizer with another template."""
    if chat_template is None:
        raise InputError(f"{model}: others read its {TOKENIZER_JSON} as it is; give a --chat-template to put beside it")
    refuse_fatal(model / TOKENIZER_JSON)
    for name in (TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS):
        if (model / name).is_file():
            shutil.copyfile(model / name, directory / name)
    if (config := directory / TOKENIZER_CONFIG).is_file():
        write_json(config, {key: value for key, value in read_json(config).items() if key != "chat_template"})
    write_text(directory / CHAT_TEMPLATE, chat_template)


def find_model(path: Path) -> Path:
    """The SentencePiece model that `path` means: the file, or `tokenizer.model` in a directory; InputError without."""
    file = path / MODEL_NAME if path.is_dir() else path
    if not file.is_file():
        refuse_tekken(path)
        advice = f"no {MODEL_NAME} in it; give a directory with one, or the file itself"
        raise InputError(f"{path}: {advice if path.is_dir() else 'no such file or directory'}")
    return file


def read_model(file: Path) -> Any:
    """A SentencePiece BPE model as a `ModelProto`: pieces with types and scores, and the settings of the training.

    User-defined control tokens are control pieces, see `model_file`.

    Raises:
        InputError: not a SentencePiece model, or one of another type than BPE.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_model_bytes(file))
    except DecodeError:
        raise InputError(f"{file}: not a SentencePiece model, or damaged; fetch or train it again") from None
    if sum(piece.type == UNKNOWN for piece in model.pieces) != 1:
        raise InputError(f"{file}: not a SentencePiece model: it must have exactly one unknown piece")
    for index, piece in enumerate(model.pieces):
        if not math.isfinite(piece.score):
            reason = f"piece {index} ({piece.piece!r}) has the score {piece.score:g}"
            raise InputError(f"{file}: {reason}, no finite number; fetch or train it again")
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type).lower()
        raise InputError(f"{file}: a {kind} model, only BPE is supported; train one with `vikhr-fast tokenizer train`")
    return model


def role_ids(model: Any) -> dict[str, int]:
    """The ids of the pieces that play a role, by the role: any of "unk", "bos", "eos" and "pad" that exist.

    As in SentencePiece: the unknown piece is known by its type, the others are control pieces known by their names.
    """
    spec = model.trainer_spec
    names = {spec.bos_piece: "bos", spec.eos_piece: "eos", spec.pad_piece: "pad"}
    ids = {}
    for index, piece in enumerate(model.pieces):
        if piece.type == UNKNOWN:
            ids["unk"] = index
        elif piece.type == CONTROL and piece.piece in names:
            ids[names[piece.piece]] = index
    return ids


def export_tokenizer(model_file: Path, directory: Path, chat_template: str | None = None) -> None:
    """Writes everything that other tools load into `directory`.

    The files: `tokenizer.model` (a copy, but for user-defined control tokens, see `model_file`), `tokenizer.json`,
    `tokenizer_config.json`, `special_tokens_map.json`, and `chat_template.jinja` if a template is given or the model
    has the ChatML control pieces.

    Args:
        model_file: a SentencePiece BPE model.
        directory: made if absent; wrap the call in `atomic_directory` for a result that is complete or absent.
        chat_template: in Jinja; ChatML if None and the model's pieces allow it.

    Raises:
        InputError: the model cannot be restated exactly; the message says why.
    """
    model = read_model(model_file)
    refuse_inexact(model, model_file)
    refuse_added(model_file, [piece.piece for piece in model.pieces])
    specials = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)}
    roles = {f"{role}_token": model.pieces[index].piece for role, index in role_ids(model).items()}
    if chat_template is None and all(piece in specials for piece in CHAT_PIECES):
        chat_template = read_template(CHAT_TEMPLATES["chatml"])

    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL_NAME).write_bytes(read_model_bytes(model_file))
    write_json(directory / "tokenizer.json", _tokenizer_json(model, specials, roles))
    write_configuration(directory, specials, roles, chat_template)


def refuse_inexact(model: Any, file: Path) -> None:
    """Raises InputError if other tools could not give the ids that SentencePiece gives from this file's model."""
    advice = "train one with `vikhr-fast tokenizer train`"
    normalizer = model.normalizer_spec
    if normalizer.precompiled_charsmap:
        raise InputError(f"{file}: its normalisation ({normalizer.name}) has no exact copy elsewhere; {advice}")
    for name, wanted in _EXACT_NORMALIZER.items():
        if getattr(normalizer, name) != wanted:
            raise InputError(f"{file}: {name} is {getattr(normalizer, name)}, must be {wanted}; {advice}")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise InputError(f"{file}: treat_whitespace_as_suffix is set, spaces must be prefixes; {advice}")
    if sum(piece.type == BYTE for piece in model.pieces) != 256:
        raise InputError(f"{file}: it has no byte_fallback, so unknown characters would be lost; {advice}")
    characters = {piece.piece for piece in model.pieces if piece.type == NORMAL and len(piece.piece) == 1}
    for index, piece in enumerate(model.pieces):
        if piece.type == UNUSED:
            raise InputError(f"{file}: piece {index} ({piece.piece!r}): unused; {advice}")
        if piece.type == USER_DEFINED and not CONTROL_FORM.fullmatch(piece.piece):
            reason = "user-defined and no control token, so SentencePiece finds it inside words, as nothing else does"
            other = "keep the vocabulary as it is, or `vikhr-fast adapt` its model to a new one"
            raise InputError(f"{file}: piece {index} ({piece.piece!r}): {reason}; {other}")
        if piece.type == NORMAL and not characters.issuperset(piece.piece):
            raise InputError(f"{file}: piece {index} ({piece.piece!r}): a character of it is no piece itself; {advice}")


def _merges(model: Any) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, in the order in which SentencePiece prefers the results.

    Pieces of equal score, such as the runs of spaces in Mistral's own model, are joined by SentencePiece strictly
    from the left, so that a run grows to its full length before the next one starts: longest results first.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ids = {piece: index for index, piece in enumerate(scores)}
    merges = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append(((-score, -len(piece), ids[piece], ids[left], ids[right]), (left, right)))
    return [merge for _, merge in sorted(merges)]


def _tokenizer_json(model: Any, specials: dict[str, int], roles: dict[str, str]) -> dict[str, Any]:
    """The template with what is this vocabulary's own; BOS, if there is one, stands before each sequence."""
    values = read_json(TEMPLATES / "tokenizer.json")
    values["post_processor"] = begins_with(roles.get("bos_token"), specials)
    values["added_tokens"] = added_tokens(specials)
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    values["model"] |= {"unk_token": roles["unk_token"], "vocab": vocabulary, "merges": _merges(model)}
    return values
