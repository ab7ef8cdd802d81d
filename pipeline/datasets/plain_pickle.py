"""Pickles of plain data, read without running what they name.

A pickle is a program: it may call any class or function that it can name, and numpy's own unpickling trusts the type
descriptions in it with raw memory. Here a pickle gets numbers, texts, containers and arrays of numbers or texts, built
by the few functions below whose arguments are checked; any other name is an error before it is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = "biufcSU"  # whose bytes are values; no objects, no records


class _Dtype:
    """Stands in for numpy.dtype while it is read."""

    def __init__(self, text: object, *_flags: object) -> None:
        self.dtype = np.dtype(text) if isinstance(text, str) and text[:1] not in "([{" else None
        if self.dtype is None or self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"arrays of type {text!r} are not read, only of numbers and texts")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, byte_order, shape, names, fields, *_sizes = state
        if shape is not None or names or fields:
            raise pickle.UnpicklingError("arrays of records are not read, only of numbers and texts")
        if self.dtype is not None and byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _Array(np.ndarray):
    """An array that takes its state from checked values alone."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, in_columns, data = state
        checked: Any = (1, *_checked(shape, dtype, data), bool(in_columns), _bytes_of(data))
        super().__setstate__(checked)


def _bytes_of(data: object) -> bytes:
    if isinstance(data, str):  # of Python 2
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError(f"an array is made of {type(data).__name__}; it must be bytes")
    return bytes(data)


def _checked(shape: object, dtype: object, data: object) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if not (isinstance(dtype, _Dtype) and dtype.dtype is not None and isinstance(shape, tuple)):
        raise pickle.UnpicklingError("an array needs a shape and a type")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise pickle.UnpicklingError(f"an array has the shape {shape}")
    needed = int(np.prod(shape, dtype=object)) * dtype.dtype.itemsize
    if needed != len(_bytes_of(data)):
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(_bytes_of(data))} bytes, not {needed}")
    return shape, dtype.dtype


def _reconstruct(*_arguments: object) -> np.ndarray:
    return np.empty(0, np.int8).view(_Array)


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    lengths, kind = _checked(shape, dtype, data)
    return np.frombuffer(_bytes_of(data), kind).reshape(lengths, order="F" if order == "F" else "C")


def _scalar(dtype: object, data: object) -> Any:
    _, kind = _checked((), dtype, data)
    return np.frombuffer(_bytes_of(data), kind)[0]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How protocols 0 to 2 make bytes."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes are made of {type(text).__name__} by {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols 0 to 2 make b""."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray.__name__,  # only ever an argument of _reconstruct: not to be called
    ("numpy", "dtype"): _Dtype,
}
for _package in ("builtins", "__builtin__"):  # the name in protocols 3 and up, and before
    _ALLOWED[_package, "set"] = set
    _ALLOWED[_package, "frozenset"] = frozenset
    _ALLOWED[_package, "bytes"] = _no_bytes
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _frombuffer


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}; only numbers, texts, containers and arrays of numbers are "
                "read, as anything else could run code"
            ) from None


def load_plain_pickle(path: str | Path) -> Any:
    """What a pickle of plain Python data and arrays of numbers or texts holds.

    Raises ValueError where it names any other class or function, before that is called, or where it is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except Exception as problem:  # a damaged pickle raises whatever its bytes happen to mean
            raise ValueError(f"{path}: cannot be read as a pickle: {problem or type(problem).__name__}") from None
