"""Whether two feature stores hold the same features, and if not, how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .features import FeatureStore

BLOCK_ROWS = 256
SEARCH_ROWS = 512


@dataclass(frozen=True)
class Comparison:
    """Features of one video in two stores. Rows are paired by number; the shorter one sets how many pairs there are.

    cosine, min_cosine: mean and smallest cosine of paired rows (1 where both are zero, 0 where one is).
    max_abs_difference: the largest |a - b|.
    max_rel_difference: the largest |a - b| over the largest |a| (no entry near zero blows it up).
    max_time_difference_seconds: the largest difference between the starts or stops of paired rows.
    row_offset: b's row i + row_offset is most like a's row i, judged on the first 512 rows; 0 unless another is better.
    cosine_at_offset: mean cosine of the rows paired so.
    problem: why there is nothing to compare (then the numbers are nan), or None.
    """

    key: str
    rows_a: int = 0
    rows_b: int = 0
    cosine: float = float("nan")
    min_cosine: float = float("nan")
    max_abs_difference: float = float("nan")
    max_rel_difference: float = float("nan")
    max_time_difference_seconds: float = float("nan")
    row_offset: int = 0
    cosine_at_offset: float = float("nan")
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem:
            return f"{self.key}: {self.problem}"
        rows = f"{self.rows_a} rows" if self.rows_a == self.rows_b else f"{self.rows_a} and {self.rows_b} rows"
        text = (
            f"{self.key}: {rows}, cosine {self.cosine:.6f} (smallest {self.min_cosine:.6f}), "
            f"difference {self.max_abs_difference:.3g} ({self.max_rel_difference:.3g} of the largest value)"
        )
        if self.row_offset:
            text += f"; rows fit better {self.row_offset:+d} later in b: cosine {self.cosine_at_offset:.6f}"
        if self.max_time_difference_seconds > 0:
            text += f"; times differ by up to {self.max_time_difference_seconds:.3f} s"
        return text


def compare(
    store_a: FeatureStore, store_b: FeatureStore, *, pairs: Mapping[str, str] | None = None, max_row_offset: int = 8
) -> dict[str, Comparison]:
    """Compare two stores video by video, reading blocks of rows; the keys of the answer are those of `store_a`.

    pairs: key in a -> key in b, for stores that name videos otherwise. None pairs equal keys; a key that only one store
        has is in the answer, with that as its problem.
    max_row_offset: how far the search for a shift by rows goes, in both directions.
    """
    if pairs is not None:
        return {key: _compare(key, store_a, store_b, other, max_row_offset) for key, other in pairs.items()}
    keys_a, keys_b = set(store_a.keys()), set(store_b.keys())
    answer = {}
    for key in sorted(keys_a | keys_b):
        if key in keys_a and key in keys_b:
            answer[key] = _compare(key, store_a, store_b, key, max_row_offset)
        else:
            answer[key] = Comparison(key, problem=f"only in {(store_a if key in keys_a else store_b).folder}")
    return answer


def _compare(key: str, store_a: FeatureStore, store_b: FeatureStore, other: str, max_row_offset: int) -> Comparison:
    a, b = store_a.read(key), store_b.read(other)
    if a.data.shape[1:] != b.data.shape[1:]:
        problem = f"rows of shape {a.data.shape[1:]} and {b.data.shape[1:]}"
        return Comparison(key, len(a), len(b), problem=problem)
    n = min(len(a), len(b))
    if n == 0:
        problem = None if len(a) == len(b) else f"{len(a)} and {len(b)} rows"
        return Comparison(key, len(a), len(b), problem=problem)
    cosines, largest_difference, largest = [], 0.0, 0.0
    for first in range(0, n, BLOCK_ROWS):
        rows_a, rows_b = (_flat(features.data[first : min(n, first + BLOCK_ROWS)]) for features in (a, b))
        cosines.append(_cosine(rows_a, rows_b))
        largest_difference = max(largest_difference, float(np.abs(rows_a - rows_b).max()))
        largest = max(largest, float(np.abs(rows_a).max()))
    cosine = np.concatenate(cosines)
    starts = np.abs(a.start_seconds[:n] - b.start_seconds[:n])
    stops = np.abs(a.stop_seconds[:n] - b.stop_seconds[:n])
    offset, at_offset = _best_offset(_flat(a.data[:SEARCH_ROWS]), _flat(b.data[:SEARCH_ROWS]), max_row_offset)
    return Comparison(
        key,
        len(a),
        len(b),
        cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        max_abs_difference=largest_difference,
        max_rel_difference=largest_difference / largest if largest else float(largest_difference > 0),
        max_time_difference_seconds=float(max(starts.max(), stops.max())),
        row_offset=offset,
        cosine_at_offset=at_offset,
    )


def _flat(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, np.float64).reshape(len(rows), -1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("nd,nd->n", a, b)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))


def _best_offset(a: np.ndarray, b: np.ndarray, max_row_offset: int) -> tuple[int, float]:
    best = (0, float(_cosine(a[: len(b)], b[: len(a)]).mean()))
    for shift in sorted(range(-max_row_offset, max_row_offset + 1), key=abs):
        moved_a, moved_b = a[max(0, -shift) :], b[max(0, shift) :]
        n = min(len(moved_a), len(moved_b))
        # few pairs fit by chance
        if n < max(1, min(len(a), len(b)) // 2):
            continue
        cosine = float(_cosine(moved_a[:n], moved_b[:n]).mean())
        if cosine > best[1] + 1e-9:
            best = (shift, cosine)
    return best
