"""Bytes of texts in, token numbers out: the first module of a text model, which carries its tokeniser in its state.

So a teacher and a student of other tokenisers read the same batch, and a model's file needs no other file. Each text is
tokenised once per process; what is remembered is bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sftc.errors import Refused
from sftc.models.text import growth

SEPARATOR = 0x1F  # between words that have an answer each; as many follow the last as there are places without a word
REMEMBERED = 20_000_000  # tokens that a process remembers; 80 MB
PIECES = re.compile(r"\w+|[^\w\s]")
PADDING, UNKNOWN = 0, 1  # of our own vocabularies; words begin at 2


class Text(NamedTuple):
    """A text in numbers: `ids` [n] int32; of words with an answer each, `first` [words]: their first token, or -1."""

    ids: np.ndarray
    first: np.ndarray


class Read:
    """What a text net reads: windows of tokens, W of them for N texts.

    Attributes:
        ids, mask: [W, L]; every text has its windows one after another.
        lengths: [W] real tokens, on the CPU.
        rows: N.
        owner: [W] the text of each window; None where each has one.
        at: [N, T] where in the flattened [W * L] tokens each word begins, -1 for none; None: an answer per text.
    """

    __slots__ = ("at", "ids", "lengths", "mask", "owner", "rows")

    def __init__(
        self, ids: Tensor, mask: Tensor, lengths: Tensor, rows: int, owner: Tensor | None, at: Tensor | None
    ) -> None:
        self.ids, self.mask, self.lengths, self.rows, self.owner, self.at = ids, mask, lengths, rows, owner, at


class Coder(Protocol):
    """A tokeniser."""

    size: int  # token numbers lie below
    before: list[int]  # tokens that open a window
    after: list[int]  # and close it

    def texts(self, texts: list[str]) -> Iterator[Text]: ...
    def words(self, rows: list[list[str]]) -> Iterator[Text]: ...


class Words:
    """Lower-case words and signs, by a vocabulary of one a line."""

    before: list[int] = []  # noqa: RUF012  # read only
    after: list[int] = []  # noqa: RUF012

    def __init__(self, data: bytes) -> None:
        self.ids = {word: i for i, word in enumerate(data.decode().split("\n"), 2)}
        self.size = len(self.ids) + 2

    def texts(self, texts: list[str]) -> Iterator[Text]:
        for text in texts:
            yield self._text(PIECES.findall(text.lower()))

    def words(self, rows: list[list[str]]) -> Iterator[Text]:
        for row in rows:
            yield self._text([word.lower() for word in row])

    def _text(self, words: list[str]) -> Text:
        ids = [self.ids.get(word, UNKNOWN) for word in words] or [UNKNOWN]
        return Text(np.array(ids, np.int32), np.arange(len(words), dtype=np.int32))


class Pieces:
    """A tokeniser of the `tokenizers` library, from its one JSON."""

    def __init__(self, data: bytes) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise Refused("this model's tokeniser needs tokenizers: pip install 'sftc[text]'") from None
        growth.check(data)
        try:
            self.made: Any = Tokenizer.from_str(data.decode())
            self.made.no_truncation()
            self.made.no_padding()
            self.size = self.made.get_vocab_size()
            around = self.made.encode("a", add_special_tokens=True)
        except BaseException as e:  # the library's own kind of panic is no Exception
            if isinstance(e, KeyboardInterrupt | SystemExit):
                raise
            said = (str(e).splitlines() or [""])[0][:120]
            raise Refused(f"the tokeniser that the model carries cannot be read ({said})") from None
        inner = [i for i, special in enumerate(around.special_tokens_mask) if not special] or [0]
        self.before, self.after = around.ids[: inner[0]], around.ids[inner[-1] + 1 :]

    def texts(self, texts: list[str]) -> Iterator[Text]:
        for found in self.made.encode_batch(texts, add_special_tokens=False):
            yield Text(np.array(found.ids, np.int32), np.empty(0, np.int32))

    def words(self, rows: list[list[str]]) -> Iterator[Text]:
        for row, found in zip(rows, self.made.encode_batch(rows, True, False), strict=True):
            first = np.full(len(row), -1, np.int32)
            for at, word in reversed(list(enumerate(found.word_ids))):
                if word is not None:
                    first[word] = at
            yield Text(np.array(found.ids, np.int32), first)


CODERS: dict[str, type[Any]] = {"words": Words, "pieces": Pieces}


class Memory:
    """A tokeniser and the texts it has met."""

    room = REMEMBERED  # of all tokenisers together

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self.held: dict[tuple[bool, bytes], Text] = {}

    def __call__(self, rows: Sequence[bytes], words: bool) -> list[Text]:
        asked = [(words, row) for row in rows]
        new = list(dict.fromkeys(key for key in asked if key not in self.held))
        if words:
            sep = chr(SEPARATOR)
            found = self.coder.words([row.decode(errors="replace").rstrip(sep).split(sep) for _, row in new])
        else:
            found = self.coder.texts([row.decode(errors="replace") for _, row in new])
        fresh = dict(zip(new, found, strict=True))
        said = [fresh[key] if key in fresh else self.held[key] for key in asked]
        for key, text in fresh.items():
            Memory.room -= len(text.ids) + len(text.first) + 16
            if Memory.room > 0:  # no text makes place for another: epochs come back to all of them in turn
                self.held[key] = text
        return said


Key = tuple[str, str]
_MEMORIES: dict[Key, Memory] = {}


def remembered(kind: str, data: bytes) -> Key:
    """Under which key `_MEMORIES` has the tokeniser that these bytes describe. Raises Refused: they describe none."""
    key = kind, hashlib.blake2b(data, digest_size=16).hexdigest()
    if key not in _MEMORIES:
        try:
            _MEMORIES[key] = Memory(CODERS[kind](data))
        except UnicodeDecodeError:
            raise Refused("the tokeniser that the model carries cannot be read (it is no text)") from None
    return key


def coder(kind: str, data: bytes) -> Coder:
    """The tokeniser that these bytes describe. Raises Refused: they describe none."""
    return _MEMORIES[remembered(kind, data)].coder


class Tokens(nn.Module):
    """uint8 rows [N, L], texts as UTF-8 bytes padded with 0, -> Read, on the device this module is on.

    Args:
        kind: words or pieces: what `vocabulary` is.
        vocabulary: the tokeniser as bytes, part of the state; a number: as many, to be loaded.
        limit: token numbers lie below: what the net has embeddings for.
        longest: tokens of a window, the special ones among them.
        windows: of a text that is longer: True reads it in several windows, False only the first.
        words: each word has an answer of its own.
        padding: the token number that fills up.
    """

    vocabulary: Tensor
    eager = True  # Python over bytes: where a model is compiled, this part is left out (Device.place)

    def __init__(
        self, kind: str, vocabulary: bytes | int, *, limit: int, longest: int, windows: bool, words: bool, padding: int
    ) -> None:
        super().__init__()
        held = torch.zeros(vocabulary, dtype=torch.uint8) if isinstance(vocabulary, int) else _tensor(vocabulary)
        self.register_buffer("vocabulary", held)
        self.kind, self.limit, self.longest, self.windows, self.words = kind, limit, longest, windows, words
        self.padding = padding
        self._known: tuple[tuple[int, int], Key | None] | None = None

    @property
    def memory(self) -> Memory | None:
        """The tokeniser and the texts it has met; None as long as none was loaded. Raises Refused: it is damaged."""
        mark = self.vocabulary.data_ptr(), self.vocabulary._version
        if self._known is None or self._known[0] != mark:  # another one was loaded
            held = self.vocabulary.cpu().numpy()
            self._known = mark, remembered(self.kind, held.tobytes()) if held.any() else None
        return None if self._known[1] is None else _MEMORIES[self._known[1]]

    def forward(self, inputs: Tensor) -> Read:
        """Raises Refused: the tokeniser knows tokens that the net has no embedding for."""
        device = self.vocabulary.device
        known = None if "meta" in (inputs.device.type, device.type) else self.memory
        if known is None:  # a dry run, without memory or before weights are loaded
            if self.training and device.type != "meta":
                raise Refused("the tokeniser of this model was never loaded; leave model.vocabulary=auto")
            return _nothing(len(inputs), self.words, device)
        rows = [row.tobytes().rstrip(b"\0") for row in inputs.cpu().numpy()]
        texts = known(rows, self.words)
        before, after = known.coder.before, known.coder.after
        room = self.longest - len(before) - len(after)
        if room < 1:
            around = len(before) + len(after)
            raise Refused(
                f"model.max_length={self.longest} leaves no room beside the {around} tokens that open and close a text"
            )
        starts = [range(0, max(1, len(text.ids)), room) if self.windows else (0,) for text in texts]
        spans = [(i, a) for i, each in enumerate(starts) for a in each]  # a window each: its text, its first token
        parts = [texts[i].ids[a : a + room] for i, a in spans]
        lengths = np.array([len(before) + len(part) + len(after) for part in parts])
        ids = np.full((len(parts), max(1, int(lengths.max()))), self.padding, dtype=np.int64)
        for line, part, length in zip(ids, parts, lengths, strict=True):
            line[:length] = np.concatenate((before, part, after))
        if ids.max() >= self.limit:
            raise Refused(
                f"the tokeniser does not fit the model: it gives token {ids.max()}, the model knows {self.limit}"
            )
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        owner = torch.tensor([i for i, _ in spans]) if len(spans) > len(texts) else None
        at = self._places(rows, texts, spans, room, ids.shape[1], len(before)) if self.words else None
        here = [_moved(torch.from_numpy(x), device) for x in (ids, mask)]
        owner, at = (None if x is None else _moved(x, device) for x in (owner, at))
        return Read(here[0], here[1], torch.from_numpy(lengths), len(texts), owner, at)

    def _places(
        self, rows: list[bytes], texts: list[Text], spans: list[tuple[int, int]], room: int, width: int, opening: int
    ) -> Tensor:
        """[N, T]: of each word the place of its first token among all W * L; -1 for none, or where that is cut off."""
        places = np.full((len(rows), 1 + max(row.count(SEPARATOR) for row in rows)), -1, dtype=np.int64)
        for window, (i, start) in enumerate(spans):
            first = texts[i].first
            inside = (first >= start) & (first < start + room)
            places[i, : len(first)][inside] = window * width + opening + first[inside] - start
        return torch.from_numpy(places)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.limit} tokens, longest={self.longest}"


def vocabulary(corpus: Iterable[str], words: bool, size: int, least: int) -> bytes:
    """The commonest words of a corpus, at most `size`, each found `least` times or oftener: one a line, UTF-8."""
    counts: dict[str, int] = {}
    for text in corpus:
        for word in text.lower().split(chr(SEPARATOR)) if words else PIECES.findall(text.lower()):
            counts[word] = counts.get(word, 0) + 1
    known = sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))
    return "\n".join(known[:size]).encode()


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type in ("cpu", "mps"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _nothing(rows: int, words: bool, device: torch.device) -> Read:
    ids = torch.zeros(rows, 4, dtype=torch.long, device=device)
    at = torch.zeros(rows, 1, dtype=torch.long, device=device) if words else None
    lengths = torch.full((rows,), 4, device="cpu")
    return Read(ids, torch.ones_like(ids, dtype=torch.bool), lengths, rows, None, at)
