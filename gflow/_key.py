"""Keys of results: a hash of all that a function's result depends on, so that a store never serves old ones.

Hashed are a function's bytecode, its defaults, what it encloses, the globals that it reads, and the functions and
classes of the user's that it calls, however deep; instances by their class and state.  What is gflow's is known by
the hash of gflow's source, the rest of what is installed by its version.  Comments and line numbers do not count.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gflow
from gflow._record import _KNOWN, _PLAIN, _code_text, _find, _globals_read, _plain_function
from gflow._versions import versions

_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
_BUILT_IN = (
    types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType, types.MethodWrapperType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip


class Unkeyable(Exception):
    """Something that a function reads cannot be hashed; the text says what."""


@functools.cache
def gflow_source() -> str:
    """Hash of all source files of gflow; an :class:`Unkeyable` if one is newer than the code that runs."""
    root, digest = Path(gflow.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.stat().st_mtime > gflow._imported_at:
            raise Unkeyable(f"{path} has changed since this process imported gflow; start Python anew")
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Versions of gflow and of what its numbers depend on, and the hash of gflow's source."""
    return versions() | {"gflow source": gflow_source()}


def key_of(function: Any, settings: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Key of what a function returns with these settings, and what a worker imports by name, with its hashes."""
    hasher = _Hasher(function)
    parts = [hasher.digest(function, "function"), hasher.digest(_sorted(settings), "settings")]
    return _hash([*parts, repr(sorted(environment().items()))]), hasher.imported


def key_of_values(values: dict[str, Any]) -> str:
    """Key of named values."""
    return _Hasher(None).digest(_sorted(values), "values")


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def changed(imported: dict[str, str]) -> str:
    """What of the things that a worker imports by name differs from what it was when the key was made, or ``""``."""
    for name, was in imported.items():
        try:
            now = _own_hash(_find(name))
        except Exception as error:  # whatever a user's module raises as it is imported
            return f"{name} cannot be imported ({type(error).__name__}: {error})"
        if now != was:
            return f"{name} is not what it is in the process that called sweep"
    return ""


def source_of(function: Any) -> str:
    """Hash of the source text of a function, or ``"unknown"`` where there is none to be read."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        text = inspect.getsource(_plain_function(function) or function)
    except (OSError, TypeError, IndexError, SyntaxError):
        try:
            text = inspect.getsource(type(function))
        except (OSError, TypeError, IndexError, SyntaxError):
            return "unknown"
    return _hash([text])


def name_of(function: Any) -> str:
    """Import name of a function, or of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _hash(parts: list[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:  # each with its length, so that no two lists of parts can look alike
        data = part.encode(errors="surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _top(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "builtins").split(".")[0]


def _is_users(module: str) -> bool:
    """Whether a module is the user's own: neither installed nor Python's."""
    top = module.split(".")[0]
    if top in _KNOWN:
        return False
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    if top not in sys.modules:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(top)
            file = spec.origin if spec is not None else None
    return file is None or not any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


@functools.cache
def _version(top: str) -> str:
    if top in _KNOWN:
        return ""  # gflow's, numpy's, ... and Python's versions stand in every key
    said = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(said, str):
        return said
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _own_hash(thing: Any) -> str:
    """Hash of a function's, a class's or a value's own text, whatever it reads."""
    function = _plain_function(thing)
    if function is not None:
        return _hash([_code_text(function.__code__)])
    if isinstance(thing, type):
        members = {name: _plain_function(member) for name, member in sorted(vars(thing).items())}
        return _hash([f"{name}={_code_text(f.__code__)}" for name, f in members.items() if f is not None])
    return _Hasher(None).digest(thing, "value")


def _steps(code: types.CodeType) -> Iterator[tuple[str, Any, list[str], int]]:
    """Names that a function and those inside it load or import, and the names of what they then take from these.

    Each is the kind of the instruction, the name, the names of attributes one inside the other (of an import: beside
    each other), and the level of a relative import.
    """
    listed = [step for step in dis.get_instructions(code) if step.opname not in ("PRECALL", "CACHE", "NOP")]
    for i, step in enumerate(listed):
        names, level = [], 0
        if step.opname == "IMPORT_NAME":
            level = listed[i - 2].argval if isinstance(listed[i - 2].argval, int) else 0
            follow: tuple[str, ...] = (
                "IMPORT_FROM",
                "STORE_FAST",
                "STORE_DEREF",
                "STORE_NAME",
                "STORE_GLOBAL",
            )
        else:
            follow = ("LOAD_ATTR", "LOAD_METHOD")
        for after in itertools.takewhile(lambda after: after.opname in follow, listed[i + 1 :]):  # noqa: B023
            if not after.opname.startswith("STORE"):
                names.append(after.argval)
        yield step.opname, step.argval, names, level
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _steps(inner)


class _Hasher:
    """Hashes values by what they are; the same in every process of the same Python and packages."""

    def __init__(self, function: Any) -> None:
        while isinstance(function, functools.partial):
            function = function.func
        self.package = _top(function) if hasattr(function, "__qualname__") else _top(type(function))
        self.done: dict[int, str] = {}
        self.alive: list[Any] = []  # so that no number of ``done`` comes to stand for another object
        self.within: dict[int, int] = {}
        self.imported: dict[str, str] = {}

    def digest(self, value: Any, path: str) -> str:
        """Hash of a value; ``path`` says where it was found, for errors."""
        if type(value) in _PLAIN:
            return f"{type(value).__name__} {value!r}"
        if type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject:
            return _hash(
                [f"array {value.dtype!r} {value.shape}", hashlib.sha256(value.tobytes()).hexdigest()]
            )
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return _hash([f"scalar {value.dtype!r}", value.tobytes().hex()])
        number = id(value)
        if number in self.done:
            return self.done[number]
        if number in self.within:  # it contains itself
            return f"level {self.within[number]}"
        self.within[number] = len(self.within)
        try:
            found = _hash([type(value).__name__, *self._parts(value, path)])
        except RecursionError:
            raise Unkeyable(f"{path} is nested too deep") from None
        finally:
            del self.within[number]
        self.alive.append(value)
        self.done[number] = found
        return found

    def _all(self, values: Any, path: str) -> list[str]:
        return [self.digest(value, path) for value in values]

    def _parts(self, value: Any, path: str) -> list[str]:
        kind = type(value)
        if kind in (list, tuple):
            return self._all(value, path)
        if kind is np.ndarray:
            return [repr(value.shape), *self._all(value.ravel().tolist(), path)]
        if kind in (set, frozenset):
            return sorted(self._all(value, path))
        if kind in (dict, types.MappingProxyType):  # in their order, which a function may go by
            return [
                self.digest(k, path) + "=" + self.digest(v, f"{path}[{k!r:.40}]") for k, v in value.items()
            ]
        if kind in (range, slice, type(Ellipsis), type(NotImplemented)):
            return [repr(value)]
        if kind is types.CodeType:
            return [_code_text(value)]
        if kind is functools.partial:
            return self._all((value.func, value.args, value.keywords), path)
        if kind is types.MethodType:
            return self._all((value.__func__, value.__self__), path)
        if isinstance(value, types.ModuleType):
            return self._module(value, path)
        if isinstance(value, type):
            return self._class(value, path)
        if isinstance(value, _BUILT_IN):
            owner = getattr(value, "__self__", None)
            about = [] if owner is None or isinstance(owner, types.ModuleType) else [self.digest(owner, path)]
            return [getattr(value, "__qualname__", value.__name__), *_compiled_in(value), *about]
        if isinstance(value, np.ufunc):
            import scipy.special

            if any(getattr(module, value.__name__, None) is value for module in (np, scipy.special)):
                return [value.__name__]
            raise Unkeyable(f"{path} is a ufunc, whose code cannot be read")
        if isinstance(value, staticmethod | classmethod):
            return [self.digest(value.__func__, path)]
        if isinstance(value, property):
            return self._all((value.fget, value.fset, value.fdel), path)
        function = _plain_function(value)
        if function is not None:
            return self._function(function, value, path)
        return self._object(value, path)

    def _follows(self, thing: Any) -> bool:
        module = getattr(thing, "__module__", None) or "builtins"
        return _is_users(module) or (_top(thing) == self.package and self.package not in _KNOWN)

    def _known(self, thing: Any) -> list[str]:
        """What is installed, by its name and version."""
        return [f"{thing.__module__}:{thing.__qualname__}", _version(_top(thing))]

    def _note_import(self, name: str, thing: Any) -> None:
        """Note what pickles by name: a worker imports it, and may find something else."""
        module = name.partition(":")[0]
        if module == "__main__" or module not in sys.modules or "<locals>" in name:
            return
        try:
            there = _find(name)
        except (ImportError, AttributeError):
            return
        if there is thing or _plain_function(there) is thing:
            self.imported[name] = _own_hash(thing)

    def _function(self, function: types.FunctionType, value: Any, path: str) -> list[str]:
        if not self._follows(function):
            if not function.__closure__ and "<locals>" not in function.__qualname__:
                return self._known(function)
        self._note_import(f"{function.__module__}:{function.__qualname__}", function)
        parts = [_code_text(function.__code__)]
        parts += self._all(function.__defaults__ or (), f"a default of {path}")
        for name, default in sorted((function.__kwdefaults__ or {}).items()):
            parts.append(f"{name}={self.digest(default, f'{name} of {path}')}")
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        scope: dict[str, Any] = {}
        for name, cell in cells:
            try:
                scope[name] = cell.cell_contents
            except ValueError:  # an empty cell
                continue
        read = _globals_read(function.__code__)
        for name in read & function.__globals__.keys():
            scope.setdefault(name, function.__globals__[name])
        modules = {name for name, found in scope.items() if isinstance(found, types.ModuleType)}
        for name in sorted(scope.keys() - modules):
            parts.append(f"{name}={self.digest(scope[name], f'{name}, which {function.__qualname__} reads')}")
            if name in read and (
                type(scope[name]) in _PLAIN or isinstance(scope[name], np.ndarray | np.generic)
            ):
                self._note_import(f"{function.__module__}:{name}", scope[name])
        for kind, name, names, level in _steps(function.__code__):
            if kind == "IMPORT_NAME":
                module = self._imported(name, level, function)
                for one in names or [""]:
                    parts.append(f"{name}.{one}=" + self._taken(module, [one] if one else [], path))
            elif kind.startswith("LOAD_") and name in modules:
                parts.append(f"{'.'.join([name, *names])}=" + self._taken(scope[name], names, path))
        extra = {k: v for k, v in vars(function).items() if not k.startswith("__")}
        parts.append(self.digest(extra, f"the attributes of {path}"))
        if value is not function:
            parts += self._known(type(value))
            parts.append(
                repr(sorted(getattr(value, "targetoptions", {}).items()))
            )  # of numba, such as fastmath
        return parts

    def _imported(self, name: str, level: int, function: types.FunctionType) -> types.ModuleType | None:
        """What a function imports; None if it is installed, or cannot be had (as the function will say itself)."""
        try:
            name = importlib.util.resolve_name("." * level + name, function.__globals__.get("__package__"))
            return importlib.import_module(name) if _is_users(name) else None
        except Exception:  # whatever a user's module raises
            return None

    def _taken(self, found: types.ModuleType | None, names: list[str], path: str) -> str:
        """What a function takes from a module by the names of attributes."""
        if found is None:
            return "installed or missing"
        for i, name in enumerate(names):
            if not _is_users(found.__name__):
                break
            if not hasattr(found, name):
                with contextlib.suppress(ImportError):  # a module inside of it
                    importlib.import_module(f"{found.__name__}.{name}")
            inner = getattr(found, name, None)
            if not isinstance(inner, types.ModuleType):
                if type(inner) in _PLAIN or isinstance(inner, np.ndarray | np.generic):
                    self._note_import(f"{found.__name__}:{name}", inner)
                return self.digest(inner, f"{found.__name__}.{'.'.join(names[i:])}, which {path} reads")
            found = inner
        return self.digest(found, path)

    def _module(self, module: types.ModuleType, path: str) -> list[str]:
        """A module that is used as a whole."""
        name = module.__name__
        if not _is_users(name):
            return [name, _version(name.split(".")[0])]
        members = {key: value for key, value in sorted(vars(module).items()) if not key.startswith("__")}
        return [name, *(f"{key}={self.digest(value, f'{name}.{key}')}" for key, value in members.items())]

    def _class(self, kind: type, path: str) -> list[str]:
        if not self._follows(kind):
            return self._known(kind)
        self._note_import(f"{kind.__module__}:{kind.__qualname__}", kind)
        parts = [kind.__qualname__, *self._all((*kind.__bases__, type(kind)), path)]
        for name, member in sorted(vars(kind).items()):
            if name.startswith(("__", "_abc_")) and not callable(member) and _plain_function(member) is None:
                continue  # such as its documentation, and what Python notes of it
            try:
                parts.append(f"{name}={self.digest(member, f'{kind.__qualname__}.{name}')}")
            except Unkeyable:  # such as a lock: nothing that a result depends on
                parts.append(f"{name}={type(member).__qualname__}")
        return parts

    def _object(self, value: Any, path: str) -> list[str]:
        """An instance, by its class and state; a property once computed and kept is none of its state."""
        kind = type(value)
        if _is_compiled(value):
            return self._known(value)
        if (
            value is np.random.mtrand._rand
        ):  # numpy's own, which scipy's distributions hold: unseeded, as a rule
            return ["numpy.random"]
        parts = [self.digest(kind, f"the class of {path}")]
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:  # whatever its class raises
            raise Unkeyable(f"{path} is a {kind.__name__}, which cannot be hashed ({error})") from error
        if isinstance(reduced, str):
            return [*parts, reduced, *_compiled_in(value)]
        make, arguments, state, *items = (*reduced, None, None, None, None)[:5]
        if (
            isinstance(state, dict)
            and getattr(value, "__dict__", None) is not None
            and state.keys() <= vars(value).keys()
        ):
            state = {k: v for k, v in state.items() if not _is_kept_property(kind, k)}
        listed = [None if item is None else list(item) for item in items]
        return parts + self._all((make, arguments, state, *listed), path)


def _compiled_in(value: Any) -> list[str]:
    """The module of something that is not written in Python, with a hash of its file if it is the user's."""
    name = getattr(value, "__module__", None) or ""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not _is_users(name):
        return [name]
    return [name, hashlib.sha256(Path(file).read_bytes()).hexdigest()]


def _is_compiled(value: Any) -> bool:
    """Whether something is a function of an installed package that is not Python's, such as Cython's."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not callable(value) or not isinstance(module, str) or not isinstance(name, str) or _is_users(module):
        return False
    try:
        return _find(f"{module}:{name}") is value
    except (ImportError, AttributeError):
        return False


def _is_kept_property(kind: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
