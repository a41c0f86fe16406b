"""One point of a sweep: what a worker knows, and what it does."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cloudpickle

from gflow import _key
from gflow._blas import one_thread
from gflow.sweeps.outputs import BadOutput, Outputs
from gflow.sweeps.store import Store

LONGEST_ERROR = 1000  # characters


class Outcome(NamedTuple):
    """What became of a point."""

    number: int
    kind: str  # "value", "error", "bad" (no output) or "refused" (the worker is not as the calling process)
    found: Any  # pickled outputs, or text
    unkept: str = ""  # why it is not in the store


class Work:
    """What a worker needs to know; pickled once, and unpickled once in each process.

    The pickle travels as bytes inside of each batch of points: Dask would keep large objects in the memory of one
    worker, and lose them with it.
    """

    def __init__(
        self, function: Any, settings: dict[str, Any], key: str, imported: dict[str, str], store: Store | None
    ) -> None:
        self.call: Any = (function, settings)
        self.store = store
        self.cause = json.dumps([imported, _key.environment() if key else {}])
        self.home = os.getpid()
        self.packed = b""
        self.refusal = ""

    def pack(self) -> None:
        try:
            self.packed = cloudpickle.dumps(self.call)
        except Exception as error:  # whatever its parts raise
            raise ValueError(
                f"function and settings must be such that they can be sent to other processes, for jobs other than 1; "
                f"they cannot be pickled ({type(error).__name__}: {error})"
            ) from error

    def __reduce__(self) -> Any:
        if not self.packed:
            self.pack()
        where = (self.store.folder, self.store.key) if self.store else None
        return _received, (self.packed, where, self.home, self.cause)

    def unpack(self) -> None:
        """Make the function, and see whether this process would compute what the calling one would."""
        imported, made_by = json.loads(self.cause)
        try:
            here = _key.environment() if made_by else {}
            other = [name for name, version in made_by.items() if here[name] != version]
            if other:
                self.refusal = (
                    f"its {other[0]} is {here[other[0]]}, in the calling process {made_by[other[0]]}"
                )
                return
            self.call = pickle.loads(self.packed)
            self.refusal = _key.changed(imported)
        except Exception as error:  # whatever a user's modules raise
            self.refusal = f"{type(error).__name__}: {error}"


@functools.lru_cache(maxsize=4)
def _received(packed: bytes, where: tuple[str, str] | None, home: int, cause: str) -> Work:
    work = Work.__new__(Work)
    work.call, work.packed, work.home, work.cause, work.refusal = None, packed, home, cause, ""
    work.store = Store(*where) if where else None
    return work


_unpacking = threading.Lock()


def run_point(work: Work, number: int, point: dict[str, Any], key: str) -> Outcome:
    """Compute a point, or take it from the store."""
    with _unpacking:
        if work.call is None and not work.refusal:
            work.unpack()
    if work.refusal:
        return Outcome(number, "refused", work.refusal)
    kept = work.store.get(key) if work.store else None
    if kept is not None:
        return Outcome(number, "value", kept)
    import scipy.linalg  # noqa: F401  (which brings a BLAS of its own, to be held as well)

    function, settings = work.call
    try:
        with _whole(work.home), one_thread():
            data = pickle.dumps(Outputs.read(function(**settings, **point)), protocol=5)
    except BadOutput as error:
        return Outcome(number, "bad", str(error))
    except BaseException as error:  # also those that are no Exception, such as SystemExit
        if isinstance(error, KeyboardInterrupt) and os.getpid() == work.home:
            raise
        text = "".join(traceback.format_exception_only(error)).strip()
        return Outcome(number, "error", text[:LONGEST_ERROR])
    return Outcome(number, "value", data, work.store.put(key, data) if work.store else "")


@contextmanager
def noting_interrupts() -> Iterator[list[BaseException]]:
    """Context that notes a Ctrl-C besides raising it: compiled code and callbacks may swallow what is raised."""
    came: list[BaseException] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # it is ignored
        yield came
        return

    def note(number: int, frame: Any) -> None:
        try:
            before(number, frame)
        except BaseException as error:
            came.append(error)
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _whole(home: int) -> Iterator[None]:
    """Context in which Ctrl-C ends a point without a result: flows answer it with what they have reached by then.

    Worker processes leave it to the one that called them.
    """
    if os.getpid() != home:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
        return
    with noting_interrupts() as came:
        try:
            yield
        finally:
            if came:
                raise came[0]
