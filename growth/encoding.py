"""Indices, coefficients and matrices in JSON, for compact plans and manifests: by runs, or packed."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growth.errors import GrowthError


def encode_ints(columns: NDArray[np.int64]) -> list[list[list[int]]]:
    """[n, K] -> per column its runs [first, count, step]; a run rises by its step, which is 0 or 1."""
    return [_int_runs(column.tolist()) for column in columns.T]


def _int_runs(values: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for v in values:
        if runs:
            first, count, step = runs[-1]
            if count == 1 and v - first in (0, 1):
                runs[-1] = [first, 2, v - first]
                continue
            if count > 1 and v == first + count * step:
                runs[-1][1] += 1
                continue
        runs.append([v, 1, 0])
    return runs


def decode_ints(columns: Sequence[Sequence[Sequence[int]]], size: int) -> NDArray[np.int64]:
    """The inverse of encode_ints: [size, K]. Raises GrowthError for columns of another length, and for none."""
    _check_counts([[count for _, count, _ in column] for column in columns], size)
    none = np.zeros(0, dtype=np.int64)
    decoded = [
        np.concatenate([none, *(first + step * np.arange(count) for first, count, step in column)])
        for column in columns
    ]
    return np.stack(decoded, axis=1).astype(np.int64)


def encode_floats(columns: NDArray[Any]) -> list[list[list[float]]]:
    """[n, K] -> per column its runs [value, count]."""
    encoded = []
    for column in columns.T:
        n = len(column)
        edges = [0, *(np.flatnonzero(column[1:] != column[:-1]) + 1).tolist(), n] if n else []
        encoded.append([[column[a].item(), b - a] for a, b in pairwise(edges)])
    return encoded


def decode_floats(columns: Sequence[Sequence[Sequence[float]]], size: int) -> NDArray[np.float64]:
    """The inverse of encode_floats: [size, K]. Raises GrowthError for columns of another length, and for none."""
    _check_counts([[count for _, count in column] for column in columns], size)
    decoded = [np.repeat([float(value) for value, _ in column], [int(n) for _, n in column]) for column in columns]
    return np.stack(decoded, axis=1).astype(np.float64)


def _check_counts(columns: Sequence[Sequence[float]], size: int) -> None:
    """Before anything of these lengths is made."""
    if not columns or any(sum(counts) != size or not all(n >= 1 for n in counts) for counts in columns):
        raise GrowthError(f"a map of {size} indices has {len(columns)} columns, and not each of that many")


def encode_matrix(matrix: NDArray[np.float64]) -> list[list[list[float]]] | dict[str, Any]:
    """[n, m] -> the runs of each row, or, where these are longer, its bytes (little endian, base64) as float32 if that
    holds every value, else as float64."""
    runs = encode_floats(matrix.T)
    if 4 * sum(map(len, runs)) < matrix.size:
        return runs
    packed = matrix.astype("<f4")
    values = packed if (packed == matrix).all() else matrix.astype("<f8")
    return {"shape": list(matrix.shape), "dtype": values.dtype.str, "base64": b64encode(values.tobytes()).decode()}


def decode_matrix(data: Sequence[Any] | Mapping[str, Any], sizes: Collection[int]) -> NDArray[np.float64]:
    """The inverse of encode_matrix: [n, m]. Raises GrowthError for rows of a length that is not among `sizes`."""
    if isinstance(data, Mapping):
        values = np.frombuffer(b64decode(data["base64"]), data["dtype"]).astype(np.float64)
        rows, length = data["shape"]
        if length not in sizes or rows * length != len(values):
            raise GrowthError(f"a matrix of {len(values)} elements and shape {data['shape']}{_not_of(sizes)}")
        return values.reshape(rows, length)
    length = sum(int(count) for _, count in data[0]) if data else min(sizes)
    if length not in sizes:
        raise GrowthError(f"a matrix of rows of {length}{_not_of(sizes)}")
    return decode_floats(data, length).T if data else np.zeros((0, length))


def _not_of(sizes: Collection[int]) -> str:
    return f" has no rows of {' or '.join(map(str, sorted(sizes)))}"
