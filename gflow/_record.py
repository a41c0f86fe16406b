"""Records on disk: one .npz of arrays and a JSON string; never pickled code.

A value is recorded by what it is: numbers, strings, arrays, sequences and dicts as they are, objects
by the import name of their class and their fields, functions by their import name.  What is not
gflow's own is recorded with a hash of its source, so that a later reader can say if it has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1


@dataclass(frozen=True)
class Missing:
    """Stands for a model or callable that a record names but that was not found."""

    name: str
    reason: str

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise ValueError(f"{self.name} was recorded with this trajectory but cannot be had: {self.reason}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"{self.name} was recorded with this trajectory but cannot be had: {self.reason}")


@dataclass(frozen=True)
class Recorded:
    """A value as JSON text with the arrays that it refers to."""

    text: str
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def make(cls, value: Any, prefix: str = "spec") -> Recorded:
        """Record a value."""
        arrays: dict[str, NDArray[Any]] = {}
        return cls(json.dumps(_encode(value, arrays, prefix)), arrays)

    def restore(self) -> tuple[Any, list[str]]:
        """The value, and notes on what has changed since it was recorded."""
        notes: list[str] = []
        return _decode(json.loads(self.text), self.arrays, notes), notes


def _import_name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _is_foreign(thing: Any) -> bool:
    """Whether something is not gflow's own, which is known by its version."""
    return thing.__module__.split(".")[0] not in ("gflow", "builtins")


def _source_hash(things: Iterable[Any]) -> str | None:
    try:
        source = "".join(inspect.getsource(getattr(thing, "py_func", thing)) for thing in things)
        return hashlib.sha256(source.encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _function_hash(function: Any) -> str | None:
    return _source_hash([function]) if _is_foreign(function) else None


def _object_hash(value: Any) -> str | None:
    """Hash of the source of an object's classes and of its kernels, which may stand outside the class."""
    classes = [kind for kind in type(value).__mro__ if _is_foreign(kind)]
    kernels = [getattr(value, name, None) for name in ("gradient", "loss", "hvp")]
    return _source_hash([*classes, *(k for k in kernels if hasattr(k, "py_func"))]) if classes else None


def _encode(value: Any, arrays: dict[str, NDArray[Any]], key: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        arrays[key] = value
        return {"array": key}
    if isinstance(value, list | tuple | range):
        return {"sequence": [_encode(v, arrays, f"{key}/{i}") for i, v in enumerate(value)],
                "tuple": isinstance(value, tuple)}  # fmt: skip
    if isinstance(value, dict):
        return {"dict": {str(k): _encode(v, arrays, f"{key}/{k}") for k, v in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": _encode(dict(value.bit_generator.state), arrays, f"{key}/state")}
    if isinstance(value, Missing):
        return {"missing": [value.name, value.reason]}
    if callable(value) and hasattr(value, "__qualname__") and not isinstance(value, type):
        return {"function": _import_name(value), "source": _function_hash(value)}
    kind = type(value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    else:
        fields = dict(vars(value)) if hasattr(value, "__dict__") else {}
    return {
        "object": _import_name(kind),
        "source": _object_hash(value),
        "fields": {k: _encode(v, arrays, f"{key}/{k}") for k, v in fields.items()},
    }


def _decode(node: Any, arrays: dict[str, NDArray[Any]], notes: list[str]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        return arrays[node["array"]]
    if "sequence" in node:
        items = [_decode(v, arrays, notes) for v in node["sequence"]]
        return tuple(items) if node["tuple"] else items
    if "dict" in node:
        return {k: _decode(v, arrays, notes) for k, v in node["dict"].items()}
    if "generator" in node:
        state = _decode(node["generator"], arrays, notes)
        bit_generator = getattr(np.random, state["bit_generator"])()
        bit_generator.state = state
        return np.random.Generator(bit_generator)
    if "missing" in node:
        return Missing(*node["missing"])
    name = node.get("function") or node["object"]
    try:
        module, _, path = name.partition(":")
        thing: Any = importlib.import_module(module)
        for part in path.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        return Missing(name, f"{type(error).__name__}: {error}")
    if "function" in node:
        made, source = thing, _function_hash(thing)
    else:
        made = _make(thing, {k: _decode(v, arrays, notes) for k, v in node["fields"].items()})
        source = _object_hash(made)
    if node["source"] is not None and source != node["source"]:
        notes.append(f"the source of {name} has changed since this trajectory was made")
    return made


def _make(kind: Any, fields: dict[str, Any]) -> Any:
    make, made = kind, object.__new__(kind)
    if dataclasses.is_dataclass(kind):
        return make(**fields)
    made.__dict__.update(fields)
    return made


def write(path: Path, parts: dict[str, Any], spec: Recorded) -> Path:
    """Write parts and spec to an .npz file under its final name only once it is complete."""
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    body = Recorded.make(parts, "parts")
    header = json.dumps({"format": FORMAT, "parts": json.loads(body.text), "spec": json.loads(spec.text)})
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz.part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{"gflow": np.array(header), **body.arrays, **spec.arrays})  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def read(path: Path) -> tuple[dict[str, Any], Recorded]:
    """Parts and spec of a file that :func:`write` made."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop("gflow")))
        if header["format"] != FORMAT:
            raise ValueError(f"it has format {header['format']}, and this gflow reads format {FORMAT}")
        parts, _ = Recorded(json.dumps(header["parts"]), arrays).restore()
        return parts, Recorded(json.dumps(header["spec"]), arrays)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"path must name a trajectory saved by gflow; {path} cannot be read: {error}"
        ) from error
