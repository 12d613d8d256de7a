"""GGUF: one file that holds metadata, vocabulary and (mostly quantized) weights.

The header is parsed here and not by gguf.GGUFReader, for two reasons. That reader makes a numpy
view of every string and number (2.2 s for the default model; 0.7 s with its memmap replaced by a
plain view; 0.04 s here), and it trusts the file: an array said to have 2^60 entries fills the
memory. Here every count is checked against the bytes that are left before anything is allocated.
The table of types and the arithmetic of the quantizations are the gguf package's.

Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)
from gguf.quants import QuantError, dequantize, quant_shape_to_byte_shape

from model.checkpoints.families.known import BY_ARCH, config_from_gguf
from model.checkpoints.sampling_defaults import from_gguf
from model.checkpoints.stored import StoredTensor
from model.checkpoints.strangers import HEAD_BYTES, what_it_is
from model.protocol.errors import ModelLoadError, errors_name
from model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4

# As many float32 as a processor's second cache holds: more or fewer take longer.
_VALUES_AT_ONCE = 1 << 18

# Stored as they are, without blocks.
_PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)

_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("?"),
}

_GLOBAL_NAMES = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    "rope_freqs.weight": "rope.factors",
}
_LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.o",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", re.ASCII)


class GGUFCheckpoint:
    """A model in one GGUF file. Opening it reads the header only."""

    def __init__(self, path: Path) -> None:
        """Raises ModelLoadError if the file is not a complete GGUF file of a known family."""
        self._path = path
        with errors_name(path):
            self._data = _map_file(path)
            self._metadata, self._tensors = _read_header(self._data)
            self.name = path.stem
            self.config = config_from_gguf(
                self._metadata, name=self.name, tensor_names=self._tensors.keys()
            )
            self._interleaves = BY_ARCH[self._metadata["general.architecture"]].gguf_interleaves
            self.chat_template = _chat_template(self._metadata)
            self.sampling_defaults = from_gguf(self._metadata)

    def tokenizer(self) -> Tokenizer:
        """Build the tokenizer. Raises ModelLoadError."""
        with errors_name(self._path):
            return Tokenizer.from_gguf(self._metadata, end_ids=self.config.eos_token_ids)

    def stored(self) -> list[StoredTensor]:
        """Every tensor of the header."""
        return [
            StoredTensor(tensor.name, tensor.shape, tensor.kind.name, tensor.nbytes)
            for tensor in self._tensors.values()
        ]

    def weights(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Canonical names and float32 tensors in our layout, dequantized one at a time.

        Raises:
            ModelLoadError: a tensor that no family has a place for, or of a type without a decoder.
        """
        import torch

        for tensor in self._tensors.values():
            with errors_name(self._path):
                name = canonical_name(tensor.name)
                array = self._load(name, tensor)
            yield name, torch.from_numpy(array)

    def _load(self, name: str, tensor: "_TensorInfo") -> np.ndarray[Any, np.dtype[np.float32]]:
        array = _dequantize(self._data, tensor)
        if self._interleaves and (heads := self._interleaved_heads(name)):
            array = _uninterleave(array, heads, self.config.head_dim)
        return array if array.flags.writeable else array.copy()  # never a view of the file

    def _interleaved_heads(self, name: str) -> int:
        """How many heads the rows of this tensor are divided into, 0 if they are not."""
        if ".attn.q." in name:
            return self.config.num_heads
        if ".attn.k." in name:
            return self.config.num_kv_heads
        return 0


def canonical_name(name: str) -> str:
    """Our name for a GGUF tensor. Raises ModelLoadError for one that no family here has."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    if (match := _LAYER_TENSOR.fullmatch(name)) and match[2] in _LAYER_NAMES:
        return f"layers.{int(match[1])}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    raise ModelLoadError(f"tensor {name!r:.80} belongs to no model family that is implemented")


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    """Where a tensor lies in the file; `shape` is in our order (rows first)."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    nbytes: int


class _Cursor:
    """Walks over a header that may be hostile: nothing is read past the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> int:
        """Step over `count` bytes and return where they begin. Raises ModelLoadError at the end."""
        start = self.position
        if count > len(self.data) - start:
            raise ModelLoadError(f"the file is cut off or corrupt at byte {start}; fetch it again")
        self.position = start + count
        return start

    def u32(self) -> int:
        value: int = struct.unpack_from("<I", self.data, self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = struct.unpack_from("<Q", self.data, self.take(8))[0]
        return value

    def count(self, bytes_each: int) -> int:
        """A number of items of at least `bytes_each` bytes, all of which the file must hold."""
        count = self.u64()
        if count * bytes_each > len(self.data) - self.position:
            raise ModelLoadError(f"a count of {count} does not fit into the file; fetch it again")
        return count

    def text(self) -> str:
        start = self.take(self.u64())
        return self.data[start : self.position].decode()

    def texts(self) -> list[str]:
        """An array of strings: the loop that start-up time hangs on, so it is written out."""
        data, unpack, position = self.data, struct.Struct("<Q").unpack_from, self.position + 8
        texts = []
        for _ in range(self.count(8)):
            end = position + 8 + unpack(data, position)[0]
            # A slice is cut at the end of the file; the next length, or take(), then notices.
            texts.append(data[position + 8 : end].decode())
            position = end
        self.take(position - self.position)
        return texts

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            return self.array(GGUFValueType(self.u32()))
        dtype = _SCALARS[kind]
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize))[0].item()

    def array(self, kind: GGUFValueType) -> Any:
        """Strings as a list; numbers as a view of the file, so that their count costs no memory."""
        if kind == GGUFValueType.STRING:
            return self.texts()
        if kind == GGUFValueType.ARRAY:
            raise ModelLoadError("arrays of arrays in the metadata are not implemented")
        dtype = _SCALARS[kind]
        count = self.count(dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize))


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        if (head := file.read(HEAD_BYTES))[:4] != _MAGIC:
            raise ModelLoadError(f"this is not a GGUF file{what_it_is(head)}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, _TensorInfo]]:
    """The metadata, and the tensors by their GGUF names in the order of the file."""
    cursor = _Cursor(data)
    cursor.take(len(_MAGIC))
    if (version := cursor.u32()) not in _VERSIONS:
        raise ModelLoadError(
            f"GGUF version {version} is not implemented, only little-endian 2 and 3; convert again"
        )
    try:
        tensor_count, entry_count = cursor.count(24), cursor.count(13)
        metadata = _read_metadata(cursor, entry_count)
        tensors = _read_tensors(cursor, tensor_count, metadata)
    except (struct.error, ValueError, OverflowError) as error:
        # Counts are checked on the way; left are bad UTF-8, unknown types, incomplete blocks.
        raise ModelLoadError(f"the file is corrupt ({error!s:.120}); fetch it again") from error
    if metadata.get("split.count", 0) not in (0, 1):
        raise ModelLoadError(
            "this is one part of a split model; join the parts: llama-gguf-split --merge "
            "NAME-00001-of-0000N.gguf whole.gguf"
        )
    return metadata, tensors


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text()
        if key in metadata:
            raise ModelLoadError(f"the metadata has {key!r:.80} twice")
        metadata[key] = cursor.value(GGUFValueType(cursor.u32()))
    return metadata


def _read_tensors(cursor: _Cursor, count: int, metadata: dict[str, Any]) -> dict[str, _TensorInfo]:
    entries = [_read_tensor_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ModelLoadError(f"general.alignment must be a power of two, not {alignment!r:.80}")
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, _TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise ModelLoadError(f"the file has tensor {name!r:.80} twice")
        nbytes = prod(quant_shape_to_byte_shape(shape, kind))
        if base + offset + nbytes > len(cursor.data):
            raise ModelLoadError(f"the file ends inside tensor {name!r:.80}; fetch it again")
        tensors[name] = _TensorInfo(name, shape, kind, base + offset, nbytes)
    return tensors


def _read_tensor_entry(
    cursor: _Cursor,
) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    """Name, shape (rows first), type, and offset from the beginning of the tensor data."""
    name = cursor.text()
    if not 1 <= (dims := cursor.u32()) <= _MAX_DIMS:
        raise ModelLoadError(f"tensor {name!r:.80} has {dims} dimensions")
    shape = tuple(reversed([cursor.u64() for _ in range(dims)]))
    if 0 in shape:
        raise ModelLoadError(f"tensor {name!r:.80} is empty")
    return name, shape, GGMLQuantizationType(cursor.u32()), cursor.u64()


def _dequantize(data: mmap.mmap, tensor: _TensorInfo) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The tensor in float32; a view of the file where it is stored so."""
    stored = np.frombuffer(data, np.uint8, tensor.nbytes, tensor.start)
    try:
        with np.errstate(all="ignore"):  # what a corrupt scale makes of a block is not our warning
            if tensor.kind in _PLAIN:
                flat = dequantize(stored, tensor.kind)
            else:
                flat = _dequantize_blocks(stored, tensor)
    except (NotImplementedError, QuantError) as error:
        raise ModelLoadError(
            f"tensor {tensor.name!r:.80} has type {tensor.kind.name}, which cannot be decoded here"
        ) from error
    return flat.reshape(tensor.shape)


def _dequantize_blocks(
    stored: np.ndarray[Any, np.dtype[np.uint8]], tensor: _TensorInfo
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Many blocks at a time. gguf itself takes sixteen rows, a call of which is mostly overhead."""
    size, nbytes = GGML_QUANT_SIZES[tensor.kind]
    blocks = stored.reshape(-1, nbytes)
    values = np.empty((len(blocks), size), np.float32)
    step = _VALUES_AT_ONCE // size
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        flat = dequantize(some.reshape(1, -1), tensor.kind)
        values[start : start + step] = flat.reshape(-1, size)
    return values


def _uninterleave(
    rows: np.ndarray[Any, np.dtype[np.float32]], heads: int, head_dim: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Undo the row order of llama files: (heads * head_dim, ...) in the same shape.

    In this family llama.cpp rotates neighbouring dimensions (0 with 1, 2 with 3, ...), so its
    converter interleaves the halves of every head of q and k; we rotate m with m + head_dim / 2.
    """
    if rows.shape[0] != heads * head_dim:
        raise ModelLoadError(
            f"q or k has {rows.shape[0]} rows, but {heads} heads of {head_dim} were declared"
        )
    paired = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _chat_template(metadata: dict[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None
