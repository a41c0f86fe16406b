"""Records on disk: one .npz of arrays and a JSON string; never pickled code.

A value is recorded by what it is: numbers, strings, arrays, sequences and dicts as they are, objects
by the import name of their class and their fields, functions by their import name.  What cannot be
recorded is recorded as :class:`Missing`, with the reason.  What is not gflow's own is recorded with a
fingerprint of its source, so that a later reader can say if it has changed.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
import tempfile
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 2


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
        encoder = _Encoder()
        return cls(json.dumps(encoder.encode(value, prefix)), encoder.arrays)

    def restore(self) -> tuple[Any, list[str]]:
        """The value, and notes on what has changed since it was recorded."""
        notes: list[str] = []
        return _decode(json.loads(self.text), self.arrays, notes), notes


def restored(value: Any) -> Any:
    """A value, or what a :class:`Recorded` one stands for, with warnings of what has changed since."""
    if not isinstance(value, Recorded):
        return value
    made, notes = value.restore()
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return made


# ---- fingerprints ------------------------------------------------------------------------------------------

#: Packages whose versions are recorded, or that change with Python only.
_KNOWN = {"gflow", "numpy", "scipy", "numba", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def _is_foreign(thing: Any) -> bool:
    """Whether something is not known by its version."""
    return (getattr(thing, "__module__", None) or "builtins").split(".")[0] not in _KNOWN


def _plain_function(thing: Any) -> types.FunctionType | None:
    """The Python function in a method, property or compiled function."""
    if isinstance(thing, types.MethodType | staticmethod | classmethod):
        thing = thing.__func__
    elif isinstance(thing, property | functools.cached_property):
        thing = thing.fget if isinstance(thing, property) else thing.func
    thing = inspect.unwrap(thing) if isinstance(thing, functools._lru_cache_wrapper) else thing
    if type(thing).__module__.split(".")[0] == "numba":
        thing = getattr(thing, "py_func", thing)
    return thing if isinstance(thing, types.FunctionType) else None


def _code_text(code: types.CodeType) -> str:
    constants = [
        _code_text(c) if isinstance(c, types.CodeType) else repr(sorted(map(repr, c)))
        if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]  # fmt: skip
    return repr((
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount,
        code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, getattr(code, "co_exceptiontable", b""),
        constants,
    ))  # fmt: skip


def _globals_read(code: types.CodeType) -> set[str]:
    """Names of the globals that a function reads and never sets."""
    names: dict[str, set[str]] = {"LOAD": set(), "STORE": set()}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
            names[step.opname.split("_")[0]].add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names["LOAD"] |= _globals_read(inner)
    return names["LOAD"] - names["STORE"]


#: By what two fingerprints of bytecode can be compared.
_PYTHON = "{}.{}".format(*sys.version_info) + f" -O{sys.flags.optimize}"


class _Fingerprint:
    """Hashes of the source and of the bytecode of classes and functions, and of what they use.

    Followed are global and enclosed numbers, strings and arrays, and functions and classes of the same
    package.  The source of what was typed into a session cannot be read; its bytecode can, but differs
    between versions of Python.
    """

    def __init__(self) -> None:
        self.source: list[str] = []
        self.code: list[str] = []
        self.readable = True
        self.seen: set[int] = set()
        self.package = ""

    @classmethod
    def of(cls, *things: Any) -> dict[str, str] | None:
        """Fingerprint of what is foreign among things, empty if none can be had; None if nothing is."""
        foreign = [thing for thing in things if _is_foreign(thing)]
        if not foreign:
            return None
        made = cls()
        for thing in foreign:
            made.package = thing.__module__.split(".")[0]
            made._add(type(thing).__name__, thing)
        found = {"python": _PYTHON, "code": _hash(made.code)} if made.code else {}
        return found | ({"source": _hash(made.source)} if made.source and made.readable else {})

    def _add(self, name: str, thing: Any) -> None:
        """Add a class, a function or a plain value; anything else leaves no trace."""
        if isinstance(thing, _PLAIN) or (
            isinstance(thing, tuple) and all(isinstance(item, _PLAIN) for item in thing)
        ):
            self._add_text(f"{name}={thing!r}")
        elif isinstance(thing, np.ndarray | np.generic) and not thing.dtype.hasobject:
            self._add_text(f"{name}={thing.dtype}{thing.shape}{thing.tobytes().hex()}")
        elif (
            (isinstance(thing, type) or _plain_function(thing) is not None)
            and id(thing) not in self.seen
            and (getattr(thing, "__module__", None) or self.package).split(".")[0] == self.package
        ):
            self.seen.add(id(thing))
            if isinstance(thing, type):
                self._add_class(thing)
            else:
                self._add_function(_plain_function(thing))

    def _add_text(self, text: str) -> None:
        self.source.append(text)
        self.code.append(text)

    def _add_source(self, thing: Any) -> None:
        try:
            self.source.append(inspect.getsource(thing))
        except (OSError, TypeError, IndexError, SyntaxError):
            self.readable = False

    def _add_class(self, kind: type) -> None:
        self._add_source(kind)
        for name, member in sorted(vars(kind).items()):
            function = _plain_function(member)
            if function is not None:
                # a kernel in the class's own body is in its source; one from outside is not
                self._add_function(function, own=not function.__qualname__.startswith(kind.__qualname__))
            elif not name.startswith("__") and not isinstance(member, type):
                self._add(name, member)

    def _add_function(self, function: Any, own: bool = True) -> None:
        if own:
            self._add_source(function)
        self.code.append(_code_text(function.__code__))
        for i, value in enumerate(function.__defaults__ or ()):
            self._add(f"default {i}", value)
        for name, value in (function.__kwdefaults__ or {}).items():
            self._add(name, value)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._add(name, cell.cell_contents)
            except ValueError:  # an empty cell
                continue
        for name in sorted(_globals_read(function.__code__)):
            if name in function.__globals__:
                self._add(name, function.__globals__[name])


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def _object_fingerprint(value: Any) -> dict[str, str] | None:
    """Fingerprint of an object's classes and of its kernels, which may stand outside the class."""
    classes = [kind for kind in type(value).__mro__ if _is_foreign(kind)]
    if not classes:
        return None
    kernels = [getattr(value, name, None) for name in ("gradient", "loss", "hvp")]
    return _Fingerprint.of(*classes, *(k for k in kernels if _plain_function(k) is not None))


def _compare(
    name: str, recorded: dict[str, str] | None, now: dict[str, str] | None, notes: list[str]
) -> None:
    """Note if what stands under a name is not, or may not be, what was recorded."""
    if recorded is None:
        return
    now = now or {}
    common = [part for part in ("source", "code") if part in recorded and part in now]
    if recorded.get("python") != now.get("python") and "code" in common:
        common.remove("code")
    if not common:
        notes.append(f"whether {name} has changed since this trajectory was made could not be checked")
    elif any(recorded[part] != now[part] for part in common):
        notes.append(f"the source of {name}, or of what it uses, has changed since this trajectory was made")


# ---- values ------------------------------------------------------------------------------------------------


def _import_name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _find(name: str) -> Any:
    """What stands under an import name; an ImportError or AttributeError if nothing does."""
    module, _, path = name.partition(":")
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


class _Encoder:
    """Values as JSON, with their arrays beside it."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.within: set[int] = set()

    def encode(self, value: Any, key: str) -> Any:
        """A JSON node for a value; what cannot be recorded becomes a note of what is missing."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Missing):
            return {"missing": [value.name, value.reason]}
        if id(value) in self.within:
            return _missing(value, "it contains itself")
        self.within.add(id(value))
        try:
            return self._encode(value, key)
        except Exception as error:
            return _missing(value, f"it could not be recorded ({type(error).__name__}: {error})")
        finally:
            self.within.discard(id(value))

    def _encode(self, value: Any, key: str) -> Any:
        if isinstance(value, bool | int | float | str):  # also numpy's float64 and str_
            return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
        if isinstance(value, complex | np.complexfloating):
            return {"complex": [float(value.real), float(value.imag)]}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, PurePath):
            return {"path": str(value)}
        if isinstance(value, np.bool_ | np.integer | np.floating):
            return value.item()
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.hasobject or isinstance(value, np.ma.MaskedArray):
                return _missing(value, "an array of objects or with a mask cannot be recorded")
            while key in self.arrays:
                key += "'"
            self.arrays[key] = np.asarray(value)
            return {"array": key}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {**self._named(type(value)), "items": self._items(value, key)}
        if isinstance(value, list | tuple | range):
            return {"sequence": self._items(value, key), "tuple": isinstance(value, tuple)}
        if isinstance(value, set | frozenset):
            return {"set": self._items(value, key), "frozen": isinstance(value, frozenset)}
        if isinstance(value, dict):
            if all(type(k) is str for k in value):
                return {"dict": {k: self.encode(v, f"{key}/{k}") for k, v in value.items()}}
            return {
                "pairs": [
                    [self.encode(k, f"{key}/key {i}"), self.encode(v, f"{key}/{i}")]
                    for i, (k, v) in enumerate(value.items())
                ]
            }
        if isinstance(value, np.random.Generator):
            state = dict(value.bit_generator.state)
            if not hasattr(np.random, state["bit_generator"]):
                return _missing(value, f"its bit generator {state['bit_generator']} is not numpy's")
            return {"generator": self.encode(state, f"{key}/state")}
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return {"partial": self._items(parts, key)}
        if inspect.ismethod(value):
            return {"method": value.__func__.__name__, "self": self.encode(value.__self__, f"{key}/self")}
        if isinstance(value, np.ufunc):
            return {"function": f"numpy:{value.__name__}", "source": None}
        if callable(value) and hasattr(value, "__qualname__"):
            return self._named(value) | {"source": _Fingerprint.of(value)}
        return self._object(value, key)

    def _items(self, values: Any, key: str) -> list[Any]:
        return [self.encode(v, f"{key}/{i}") for i, v in enumerate(values)]

    def _named(self, thing: Any) -> dict[str, Any]:
        """A function or class by its import name; an error if it cannot be found by it."""
        _find(_import_name(thing))
        return {"function": _import_name(thing), "source": None}

    def _object(self, value: Any, key: str) -> Any:
        kind = type(value)
        _find(_import_name(kind))
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        elif hasattr(value, "__dict__"):
            fields = dict(vars(value))
        else:
            return _missing(value, "it has no fields that could be recorded")
        _make(kind, fields)  # what cannot be made again here cannot be made by a reader
        return {
            "object": _import_name(kind),
            "source": _object_fingerprint(value),
            "fields": {k: self.encode(v, f"{key}/{k}") for k, v in fields.items()},
        }


def _missing(value: Any, reason: str) -> dict[str, Any]:
    named = value if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) else type(value)
    return {"missing": [f"{named.__module__}:{named.__qualname__}", reason]}


def _decode(node: Any, arrays: dict[str, NDArray[Any]], notes: list[str]) -> Any:
    if not isinstance(node, dict):
        return node
    if "missing" in node:
        return Missing(*node["missing"])

    def decode(inner: Any) -> Any:
        return _decode(inner, arrays, notes)

    for kind, restore in _SIMPLE.items():
        if kind in node:
            return restore(node, decode)
    if "array" in node:
        return arrays[node["array"]]
    if "method" in node:
        owner = decode(node["self"])
        if isinstance(owner, Missing):
            return Missing(f"{owner.name}.{node['method']}", owner.reason)
        return getattr(owner, node["method"], None) or Missing(
            f"{_import_name(type(owner))}.{node['method']}", "its class has no such method"
        )
    name = node.get("function") or node["object"]
    try:
        thing = _find(name)
    except Exception as error:  # whatever a user's module raises as it is imported
        return Missing(name, f"{type(error).__name__}: {error}")
    if "function" in node and "items" not in node:
        _compare(name, node["source"], _Fingerprint.of(thing), notes)
        return thing
    try:
        if "items" in node:
            return thing(*map(decode, node["items"]))
        made = _make(thing, {k: decode(v) for k, v in node["fields"].items()})
        now = _object_fingerprint(made)
    except Exception as error:  # whatever a user's class raises as it is made
        return Missing(name, f"it cannot be made from what was recorded: {type(error).__name__}: {error}")
    _compare(name, node["source"], now, notes)
    return made


def _generator(state: dict[str, Any]) -> np.random.Generator:
    bit_generator = getattr(np.random, state["bit_generator"])()
    bit_generator.state = state
    return np.random.Generator(bit_generator)


def _partial(function: Any, args: Any, keywords: Any) -> Any:
    return functools.partial(function, *args, **keywords)


_SIMPLE: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "complex": lambda node, decode: complex(*node["complex"]),
    "bytes": lambda node, decode: bytes.fromhex(node["bytes"]),
    "path": lambda node, decode: Path(node["path"]),
    "sequence": lambda node, decode: (tuple if node["tuple"] else list)(map(decode, node["sequence"])),
    "set": lambda node, decode: (frozenset if node["frozen"] else set)(map(decode, node["set"])),
    "dict": lambda node, decode: {k: decode(v) for k, v in node["dict"].items()},
    "pairs": lambda node, decode: {decode(k): decode(v) for k, v in node["pairs"]},
    "generator": lambda node, decode: _generator(decode(node["generator"])),
    "partial": lambda node, decode: _partial(*map(decode, node["partial"])),
}


def _make(kind: Any, fields: dict[str, Any]) -> Any:
    if hasattr(kind, "__dataclass_fields__"):
        return kind(**fields)
    made = object.__new__(kind)
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
    """Parts and spec of a file that :func:`write` made; the name may lack its ending."""
    if not path.exists() and path.with_name(path.name + ".npz").exists():
        path = path.with_name(path.name + ".npz")
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
    except (
        OSError, KeyError, IndexError, AttributeError, TypeError, ValueError, EOFError, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(
            f"path must name a trajectory saved by gflow; {path} cannot be read: {error}"
        ) from error
