"""Owns the native handles of llama.cpp: model, context, batch, vocabulary. No policy lives here.

Reads one GGUF file. Raises EngineError with llama.cpp's own last words when a call fails.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import llama_cpp as native
import numpy as np

from serve.engines.base import LogitsTV
from serve.errors import EngineError
from serve.template import ChatTemplate

DECODE_BATCH_TOKENS = 512

# llama.cpp explains failures only through its log; keep the end of it for error messages.
_log_tail: deque[str] = deque(maxlen=8)


@native.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(_level: int, text: bytes, _data: object) -> None:
    _log_tail.append(text.decode("utf-8", "replace").strip())


native.llama_log_set(_keep_log, ctypes.c_void_p(0))
native.llama_backend_init()


class Row(NamedTuple):
    """One token of a batch: where it stands, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class LlamaModel:
    """A GGUF with a context of `sequences` separate streams of `context_tokens` each.

    Streams are separate (`kv_unified=False`) so that a sequence's attention never depends on where
    other sequences put their cells: the sums run over its own cells in order of position.
    """

    def __init__(self, path: Path, sequences: int, context_tokens: int, threads: int) -> None:
        self.path = path
        model_options = native.llama_model_default_params()
        model_options.use_mmap = (
            False  # a mapped file is kept a second time beside repacked weights
        )
        self._model = native.llama_model_load_from_file(str(path).encode(), model_options)
        if not self._model:
            raise EngineError(f"{path.name} does not load: {last_log_line()}")
        options = native.llama_context_default_params()
        options.n_ctx = context_tokens * sequences
        options.n_seq_max = sequences
        options.kv_unified = False
        options.n_batch = options.n_ubatch = DECODE_BATCH_TOKENS
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = native.llama_init_from_model(self._model, options)
        if not self._context:
            native.llama_model_free(self._model)
            raise EngineError(f"no context for {path.name}: {last_log_line()}")
        self._memory = native.llama_get_memory(self._context)
        self._batch = native.llama_batch_init(DECODE_BATCH_TOKENS, 0, 1)
        self.vocabulary = native.llama_model_get_vocab(self._model)
        self.vocabulary_size = native.llama_vocab_n_tokens(self.vocabulary)
        self.context_tokens = int(native.llama_n_ctx_seq(self._context))
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            native.llama_batch_free(self._batch)
            native.llama_free(self._context)
            native.llama_model_free(self._model)

    def chat_template(self) -> ChatTemplate:
        source = native.llama_model_chat_template(self._model, None)
        if not source:
            raise EngineError(f"{self.path.name} carries no chat template")
        bos, eos = (
            self.piece(token, special=True).decode() if token >= 0 else ""
            for token in (
                native.llama_vocab_bos(self.vocabulary),
                native.llama_vocab_eos(self.vocabulary),
            )
        )
        return ChatTemplate(source.decode("utf-8"), bos, eos, self.path.name)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`, without a begin token; `special` reads `<|im_end|>` as one token."""
        raw = text.encode("utf-8")
        buffer = (native.llama_token * (len(raw) + 8))()
        count = native.llama_tokenize(
            self.vocabulary, raw, len(raw), buffer, len(buffer), False, special
        )
        if count < 0:
            raise EngineError(f"{len(raw)} bytes need {-count} tokens, buffer {len(buffer)}")
        return list(buffer[:count])

    def begin_ids(self) -> list[int]:
        """The token that a plain text begins with, where the model was trained with one."""
        begin = native.llama_vocab_bos(self.vocabulary)
        return [begin] if begin >= 0 and native.llama_vocab_get_add_bos(self.vocabulary) else []

    def piece(self, token: int, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = native.llama_token_to_piece(self.vocabulary, token, buffer, 256, 0, special)
        return buffer.raw[: max(size, 0)]

    def ends(self, token: int) -> bool:
        return bool(native.llama_vocab_is_eog(self.vocabulary, token))

    def decode(self, rows: Sequence[Row]) -> None:
        """Run one batch. Logits of the rows that want them are then at `logits(row index)`."""
        if len(rows) > DECODE_BATCH_TOKENS:
            raise EngineError(f"{len(rows)} rows in one batch, limit {DECODE_BATCH_TOKENS}")
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, row in enumerate(rows):
            batch.token[index] = row.token
            batch.pos[index] = row.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row.sequence
            batch.logits[index] = row.wants_logits
        status = native.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(
                f"llama_decode returned {status} on {len(rows)} tokens "
                f"({self.path.name}, {self.context_tokens} tokens a sequence): {last_log_line()}"
            )

    def logits(self, row: int) -> LogitsTV:
        """Logits (V,) of one row of the last batch: a view, valid until the next decode."""
        pointer = native.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary_size,))

    def copy_sequence(self, source: int, target: int) -> None:
        native.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear_sequence(self, sequence: int, first_position: int = 0) -> bool:
        """False where a model with recurrent layers cannot forget only a part."""
        return bool(native.llama_memory_seq_rm(self._memory, sequence, first_position, -1))

    def state(self, sequence: int) -> bytes:
        """What a sequence holds, for `restore`."""
        size = native.llama_state_seq_get_size(self._context, sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = native.llama_state_seq_get_data(self._context, buffer, size, sequence)
        return bytes(memoryview(buffer)[:written])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Have an empty sequence hold a `state` of the same model; False where it does not fit."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(native.llama_state_seq_set_data(self._context, buffer, len(state), sequence))

    def forgets(self) -> bool:
        """Whether the last tokens of a sequence can be taken back."""
        recurrent = native.llama_model_is_recurrent(self._model)
        return not (recurrent or native.llama_model_is_hybrid(self._model))


def native_build() -> str:
    """Release of llama.cpp's package, and the processor features it was built for."""
    return f"{native.__version__} {native.llama_print_system_info().decode()}"


def last_log_line() -> str:
    """The last non-empty line llama.cpp logged."""
    return next((line for line in reversed(_log_tail) if line.strip(" .")), "no message")
