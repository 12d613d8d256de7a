"""Text <-> token ids, for byte-level and SentencePiece-style BPE vocabularies.

Knows nothing of models, chats and HTTP. Works without torch: the API process tokenizes too.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from model.protocol.errors import ModelLoadError

# One text at a time leaves nothing to parallelize, and the library's thread pool dislikes fork().
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_SPACE = "▁"  # how SentencePiece writes a space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# tokenizer.ggml.token_type (llama.cpp: enum llama_token_type)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# A model file may name one end only, that of texts for example, and not that of turns. As in
# llama.cpp (src/llama-vocab.cpp, special_eog_ids), a control token of such a name ends an answer.
_ENDS_BY_NAME = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>"}
    | {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"}
    | {"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<turn|>"}
)
# The last may be words of a text. The others, and what begins a turn, are control tokens even
# where the file says that they are text: as text, a user could write them.
_MAYBE_TEXT = frozenset({"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<turn|>"})
_CONTROL_BY_NAME = (_ENDS_BY_NAME - _MAYBE_TEXT) | frozenset(
    {"<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"}
    | {"<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"}
    | {"<｜User｜>", "<｜Assistant｜>", "<|system|>", "<|user|>", "<|assistant|>"}
)


class Tokenizer:
    """One vocabulary. Every method may be called from any thread.

    Control tokens structure a conversation for the model (`<|im_end|>` and the like). Written in
    a text they are plain text, unless `parse_special` says that the text is trusted.

    Attributes:
        bos_token, eos_token: what a chat template is given under these names, if anything.
        special_ids: the control tokens.
        end_ids: those that end an answer: what the model file says, and by their names.
        corrected: the control tokens that the file calls text, in its spelling.
        control_initials: the characters with which control tokens begin.
        vocab_size: one more than the highest id.
        strip_leading_space: whether the first token of a text carries a space that is none of its
            own. So it is with SentencePiece: `hello` is encoded as ` hello`, and `decode` takes
            the space away again. `token_bytes` keeps it: in the middle of a text, where an answer
            begins, it is a real one.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        """Take over `backend`. Raises ModelLoadError if its vocabulary is of another kind."""
        backend.no_truncation()
        backend.no_padding()
        self.corrected = _correct_control_tokens(backend, end_ids)
        self._byte_level, self.strip_leading_space = _decoder_style(backend)
        self._plain = backend
        # Whether control tokens are parsed is state of the backend, so each way has its own.
        self._parsing = _twin(backend)
        _try_out(self._parsing)
        self._plain.encode_special_tokens = True
        self._added = {
            id: token.content for id, token in backend.get_added_tokens_decoder().items()
        }
        self._control = _control_tokens(backend)
        self._control_pattern = _control_pattern(self._control.values())
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.special_ids = frozenset(self._control)
        named = [id for id, token in self._control.items() if token.content in _ENDS_BY_NAME]
        self.end_ids = tuple(dict.fromkeys([*end_ids, *named]))
        self.control_initials = frozenset(token.content[0] for token in self._control.values())
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_json(
        cls,
        source: Path | str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        end_ids: Sequence[int] = (),
    ) -> "Tokenizer":
        """Load a Hugging Face tokenizer.json, given its path or (as str) its content.

        `end_ids` are those with which the model's configuration ends an answer.

        Raises:
            ModelLoadError: it is not readable, or its kind of vocabulary is not implemented.
        """
        try:
            text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
            backend = Backend.from_str(text)
        except Exception as error:  # the Rust side raises plain Exception
            raise ModelLoadError(f"not a usable tokenizer.json ({error!s:.200})") from error
        return cls(backend, bos_token=bos_token, eos_token=eos_token, end_ids=end_ids)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, end_ids: Sequence[int] = ()) -> "Tokenizer":
        """Build the tokenizer that the metadata of a GGUF file describes.

        `end_ids` are those with which the model's configuration ends an answer.

        Raises:
            ModelLoadError: something is missing, or names a tokenizer that is not implemented.
        """
        vocabulary = _GGUFVocabulary(metadata)
        try:
            backend = vocabulary.build()
        except ModelLoadError:
            raise
        except Exception as error:  # the Rust side raises plain Exception
            raise ModelLoadError(f"the vocabulary cannot be used ({error!s:.200})") from error
        return cls(
            backend,
            bos_token=vocabulary.token_text("bos_token_id"),
            eos_token=vocabulary.token_text("eos_token_id"),
            end_ids=end_ids,
        )

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`, with BOS in front where the model wants it and `add_special_tokens`.

        What takes long of it happens outside of the interpreter lock.

        Raises:
            ValueError: the text holds lone surrogates, which no UTF-8 text can.
        """
        backend = self._parsing if parse_special else self._plain
        try:
            # A batch of one, because only batches are encoded outside of the lock.
            batch = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise ValueError("the text holds lone surrogates") from error
        ids: list[int] = batch[0].ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        pieces = (self._bytes(id, skip_special) for id in ids)
        text = b"".join(pieces).decode(errors="replace")
        return text.removeprefix(" ") if self.strip_leading_space else text

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token adds to a text: none for control tokens and unknown ids."""
        return self._bytes(id, skip_special=True)

    def piece(self, id: int) -> str:
        """One token alone, as text; a partial code point shows as U+FFFD."""
        text = self.token_bytes(id).decode(errors="replace")
        return text or self.decode([id], skip_special=False)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's own spelling."""
        id: int | None = self._plain.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str:
        """A token in the vocabulary's own spelling. Raises KeyError for an id without a token."""
        token = self._token(id)
        if token is None:
            raise KeyError(id)
        return token

    def split_control(self, text: str) -> Iterator[str | int]:
        """The pieces of a trusted text: control tokens as ids, what lies between as strings."""
        ids = {token.content.strip(): id for id, token in self._control.items()}
        end = 0
        for match in self._control_pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()]
            yield ids[match[0].strip()]
            end = match.end()
        if end < len(text):
            yield text[end:]

    def _token(self, id: int) -> str | None:
        # The backend takes unsigned 32-bit ids only.
        token: str | None = self._plain.id_to_token(id) if 0 <= id < self.vocab_size else None
        return token

    def _bytes(self, id: int, skip_special: bool) -> bytes:
        if id in self._added:  # written as is, never in the vocabulary's alphabet
            return b"" if skip_special and id in self.special_ids else self._added[id].encode()
        token = self._token(id)
        if token is None:
            return b""
        return _byte_level_bytes(token) if self._byte_level else _sentencepiece_bytes(token)


def _twin(backend: Backend) -> Backend:
    """An independent tokenizer with the same contents.

    Built from the parts, because these share the vocabulary, and writing and parsing JSON takes
    longer than all the rest. Added tokens get the next free ids: a gap needs the long way.
    """
    twin = Backend(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(twin, part, value)
    added = backend.get_added_tokens_decoder()
    twin.add_tokens([added[id] for id in sorted(added)])
    if twin.get_added_tokens_decoder() != added:
        return Backend.from_str(backend.to_str())
    return twin


def _try_out(backend: Backend) -> None:
    """Some broken files are only noticed at the first text, and then as a panic of the Rust side.

    Raises:
        ModelLoadError: the tokenizer cannot encode.
    """
    try:
        backend.encode("a")
    except BaseException as error:  # a panic is no Exception, and its class cannot be imported
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelLoadError(f"the tokenizer cannot encode ({error!s:.200})") from error
        raise


def _decoder_style(backend: Backend) -> tuple[bool, bool]:
    """Whether the vocabulary is byte-level, and whether decoding drops a leading space.

    Raises:
        ModelLoadError: it is neither byte-level nor SentencePiece-like.
    """
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return True, False
    if "Metaspace" in kinds:
        return False, any(step.get("prepend_scheme", "never") != "never" for step in steps)
    if "Replace" in kinds:
        return False, "Strip" in kinds
    raise ModelLoadError("the tokenizer is neither byte-level nor SentencePiece-like BPE")


def _correct_control_tokens(backend: Backend, end_ids: Sequence[int]) -> list[str]:
    """Make control tokens of ends, and of tokens with the names of control tokens.

    Returns those that were text so far. As text they would show in answers, and a user's message
    could end a turn.
    """
    names = {name for name in _CONTROL_BY_NAME if backend.token_to_id(name) is not None}
    ends = [backend.id_to_token(id) for id in end_ids]
    names.update(end for end in ends if end and len(end) > 1)  # one byte is a text, end or not
    names -= {token.content for token in _control_tokens(backend).values()}
    wrong = sorted(names)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in wrong])
    return wrong


def _control_tokens(backend: Backend) -> dict[int, AddedToken]:
    added = backend.get_added_tokens_decoder()
    return {id: token for id, token in added.items() if token.special and token.content}


def _control_pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches any control token, the longest first, with the white space that it swallows."""
    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    alternatives = [
        (r"\s*" if token.lstrip else "")
        + re.escape(token.content)
        + (r"\s*" if token.rstrip else "")
        for token in longest_first
    ]
    return re.compile("|".join(alternatives) or r"(?!)")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:  # a token that is not spelled in the alphabet stands for itself
        return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What a GGUF file means by the name of a pre-tokenizer (llama.cpp: src/llama-vocab.cpp).

    `digits`, then each of `patterns`, then `gpt2` split the text further. `compose` brings it to
    Unicode form C first, as the published tokenizer does and llama.cpp does not.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    digits: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    compose: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return pre_tokenizers.Sequence(steps)


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_UPPER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

_DEFAULT = _Recipe(
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)
_GPT2 = _Recipe(gpt2=True)
_DIGITS_GPT2 = _Recipe(digits=True, gpt2=True)
_LLAMA3_SPLIT = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",)
_LLAMA3 = _Recipe(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
_DBRX = _Recipe(_LLAMA3_SPLIT)
_QWEN2 = _Recipe((rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}",), compose=True)
_TEKKEN = _Recipe(
    (rf"{_LOWER_WORD}|{_UPPER_WORD}|\p{{N}}|{_REST_SLASH}",), ignore_merges=True, add_bos=True
)
_GPT4O = _Recipe(
    (rf"{_LOWER_WORD}{_CONTRACTION}?|{_UPPER_WORD}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_REST_SLASH}",)
)

_RECIPES = {
    "codeshell": _DIGITS_GPT2,
    "command-r": _DIGITS_GPT2,
    "dbrx": _DBRX,
    "default": _DEFAULT,
    "deepseek-r1-qwen": _QWEN2,
    "falcon3": _LLAMA3,
    "gpt-2": _GPT2,
    "gpt-4o": _GPT4O,
    "kanana2": _GPT4O,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "llama4": _GPT4O,
    "megrez": _QWEN2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "pixtral": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _DIGITS_GPT2,
    "smaug-bpe": _DBRX,
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "tekken": _TEKKEN,
}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")  # the alphabet has no space
    return left, right


class _GGUFVocabulary:
    """The `tokenizer.ggml.*` metadata, checked, and the backend that it describes."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._tokens = self._strings("tokens")
        self._ids = {token: id for id, token in enumerate(self._tokens)}
        if len(self._ids) != len(self._tokens):
            raise ModelLoadError("the vocabulary lists a token twice")
        self._types = self._numbers("token_type", _NORMAL)

    def build(self) -> Backend:
        kind = self._get("model")
        if kind == "gpt2":
            backend, add_bos = self._byte_level()
        elif kind == "llama":
            backend, add_bos = self._sentencepiece()
        else:
            raise ModelLoadError(f"tokenizer {kind!r:.80} is not implemented; choose gpt2 or llama")
        backend.add_tokens(self._added_tokens())
        self._add_ends(backend, add_bos)
        return backend

    def token_text(self, key: str) -> str | None:
        """The token whose id the metadata gives under `key`."""
        id = self._get(key)
        return self._tokens[id] if type(id) is int and 0 <= id < len(self._tokens) else None

    def _byte_level(self) -> tuple[Backend, bool]:
        name = self._get("pre")
        recipe = _RECIPES.get(name) if isinstance(name, str) else None
        if name is None:
            raise ModelLoadError(
                "tokenizer.ggml.pre is missing, which says how text is cut into words; convert the "
                "model again, or add it: gguf-new-metadata --pre-tokenizer NAME old.gguf new.gguf, "
                f"where NAME is {', '.join(_RECIPES)}"
            )
        if recipe is None:
            # Guessing one would give almost the right ids, and an answer that is subtly worse.
            raise ModelLoadError(
                f"pre-tokenizer {name!r:.80} is not implemented; choose {', '.join(_RECIPES)}"
            )
        merges = [_pair(merge) for merge in self._strings("merges")]
        backend = Backend(models.BPE(self._ids, merges, ignore_merges=recipe.ignore_merges))
        if recipe.compose:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = recipe.pre_tokenizer()
        backend.decoder = decoders.ByteLevel()
        return backend, recipe.add_bos

    def _sentencepiece(self) -> tuple[Backend, bool]:
        prefix = self._flag("add_space_prefix", True)
        model = models.BPE(
            self._ids,
            self._merges_by_score(),
            unk_token=self.token_text("unknown_token_id"),
            fuse_unk=True,
            byte_fallback=True,
        )
        backend = Backend(model)
        spaces = normalizers.Replace(" ", _SPACE)
        backend.normalizer = (
            normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
        )
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(
            [*steps, decoders.Strip(" ", 1, 0)] if prefix else steps
        )
        return backend, True

    def _merges_by_score(self) -> list[tuple[str, str]]:
        """SentencePiece joins the pair that makes the best token; as BPE: pairs, ranked."""
        scores = self._numbers("scores", 0.0)
        pairs = []
        for token, score, kind in zip(self._tokens, scores, self._types, strict=True):
            if kind not in (_NORMAL, _USER_DEFINED):
                continue
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in self._ids and right in self._ids:
                    pairs.append((score, left, right))
        # The order of transformers' own conversion: by score, longer parts first.
        pairs.sort(key=lambda pair: (pair[0], len(pair[1]), len(pair[2])), reverse=True)
        return [(left, right) for _, left, right in pairs]

    def _added_tokens(self) -> list[AddedToken]:
        """Tokens that are matched as a whole before anything else."""
        return [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(self._tokens, self._types, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]

    def _add_ends(self, backend: Backend, add_bos: bool) -> None:
        """Let the backend put BOS and EOS around a text, where the model wants them."""
        wanted = {
            "bos_token_id": self._flag("add_bos_token", add_bos),
            "eos_token_id": self._flag("add_eos_token", False),
        }
        bos, eos = (self.token_text(key) if wanted[key] else None for key in wanted)
        if bos is None and eos is None:
            return
        backend.post_processor = processors.TemplateProcessing(
            single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
            special_tokens=[(token, self._ids[token]) for token in (bos, eos) if token],
        )

    def _get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def _flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        return value if isinstance(value, bool) else default

    def _strings(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list):
            raise ModelLoadError(f"the file has no tokenizer.ggml.{key}")
        return value

    def _numbers(self, key: str, default: float) -> Sequence[float]:
        """One number per token; the array in the file, or the default for all."""
        value = self._get(key)
        if value is None:
            return [default] * len(self._tokens)
        if not hasattr(value, "tolist") or len(value) != len(self._tokens):
            raise ModelLoadError(f"tokenizer.ggml.{key} must hold one number per token")
        numbers: list[float] = value.tolist()
        return numbers
