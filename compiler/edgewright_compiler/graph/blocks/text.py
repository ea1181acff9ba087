"""Text to whole numbers: n-grams hashed in the graph, or a fixed vocabulary on the host.

Text reaches a package as UTF-8 bytes in a row of fixed length, zeros behind it (`encoded`). `HashedNgrams` needs
nothing else, so train and serve cannot differ; `Vocabulary` splits words, which no graph can: `preprocess: host`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

PADDING: Final = 0
UNKNOWN: Final = 1
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_MULTIPLIER: Final = 40503  # Knuth, TAOCP vol. 3, section 6.4: near 2^16 / golden ratio


def encoded(texts: Sequence[str], length: int) -> npt.NDArray[np.uint8]:
    """UTF-8 bytes [n, length]; what is longer is cut, also inside a character."""
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = text.encode()[:length]
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


class HashedNgrams(nn.Module):
    """Bytes [n, length] → int32 ids [n, places] in 0 .. buckets - 1, for an embedding table; 0 where a zero byte is.

    For each order m, the m bytes from each place on are hashed: 1 + (sum of byte * coefficient) mod (buckets - 1), the
    coefficients being powers of a fixed multiplier. Places of all orders lie side by side. With `fold`, A-Z count as
    a-z. Whole numbers throughout, so every runtime has the same ids.
    """

    def __init__(self, buckets: int, *, orders: Sequence[int] = (3,), fold: bool = True) -> None:
        super().__init__()
        if not 2 < buckets <= 2**20:  # products of a byte and a coefficient, added up, stay below 2^31
            raise RequestError(f"expected 3 to {2**20} buckets, got {buckets}")
        if not orders or min(orders) < 1 or max(orders) > 7:
            raise RequestError(f"expected n-grams of 1 to 7 bytes, got {tuple(orders)}")
        self.modulus, self.orders, self.fold = buckets - 1, tuple(orders), fold

    def places(self, length: int) -> int:
        """How many ids a row of this many bytes gives."""
        return sum(length - order + 1 for order in self.orders)

    def coefficients(self, order: int) -> list[int]:
        return [pow(_MULTIPLIER + order, i + 1, self.modulus) for i in range(order)]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < max(self.orders):
            raise RequestError(f"expected rows of at least {max(self.orders)} bytes, got {x.shape[1]}")
        x = x.to(torch.int32)
        if self.fold:
            # 32 for what lies in 65..90: one at the low end, less one beyond the high end, without a comparison
            x = x + 32 * ((x - 64).clamp(0, 1) - (x - 90).clamp(0, 1))
        filled = x.clamp(0, 1)
        parts = []
        for order in self.orders:
            last = x.shape[1] - order + 1
            total, whole = None, None
            for i, coefficient in enumerate(self.coefficients(order)):
                term, there = x[:, i : i + last] * coefficient, filled[:, i : i + last]
                total = term if total is None else total + term
                whole = there if whole is None else whole * there
            assert total is not None
            assert whole is not None
            parts.append((torch.remainder(total, self.modulus) + 1) * whole)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class Vocabulary:
    """The most frequent words of a text; the word of rank i has id i + 2. Runs on the host: `preprocess: host`.

    Text is lowered, then split into words and single signs. Equal texts give an equal vocabulary: ties go by the word.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if len(set(words)) != len(words):
            raise RequestError("a vocabulary has each word once")
        self.words = tuple(words)
        self._ids = {word: i + 2 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        """How many ids there are, padding and the unknown word among them."""
        return len(self.words) + 2

    @classmethod
    def fit(cls, texts: Iterable[str], size: int) -> Vocabulary:
        counts = Counter(word for text in texts for word in split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: max(0, size - 2)])

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """One word a line, UTF-8. Raises RequestError, OSError."""
        try:
            return cls(path.read_text("utf-8").splitlines())
        except (UnicodeDecodeError, RequestError) as error:
            raise RequestError(f"{path}: expected one word a line in UTF-8, each once: {error}") from None

    def write(self, path: Path) -> None:
        path.write_text("".join(f"{word}\n" for word in self.words), "utf-8")

    def encode(self, texts: Sequence[str], length: int) -> npt.NDArray[np.int32]:
        """Ids [n, length], padded at the end; what is longer is cut."""
        rows = np.full((len(texts), length), PADDING, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self._ids.get(word, UNKNOWN) for word in split(text)[:length]]
            row[: len(ids)] = ids
        return rows


def split(text: str) -> list[str]:
    return _WORD.findall(text.lower())
