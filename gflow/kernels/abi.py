"""The one frozen signature by which every solver calls every model.

Kernels take arrays and give arrays: all one-dimensional, C-contiguous, 64-bit.
A solver receives a kernel as a first-class function of the types below, so it is
compiled once for all models, and its machine code is served from numba's
on-disk cache in later processes.

Cache policy.  Numba notices an edit of the file that a cached function stands in,
but not of the files whose functions it calls, and would go on to serve the old
physics.  ``kernel`` therefore binds the cache to the sources of all kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.experimental.function_type import FunctionModel
from numba.extending import NativeValue, register_model, unbox

_floats = types.float64[::1]
_ints = types.int64[::1]

#: THE signatures.  ``gradient`` and ``hvp`` (the Hessian times v) write to ``out``; ``loss`` returns a number;
#: ``lane_gradient`` is the gradient of L states side by side, with ``theta``, ``work`` and ``out`` L times as long.
SIGNATURES = {
    "gradient": types.void(types.float64, _floats, _floats, _ints, _floats, _floats),
    "loss": types.float64(types.float64, _floats, _floats, _ints, _floats),
    "hvp": types.void(types.float64, _floats, _floats, _floats, _ints, _floats, _floats),
    "lane_gradient": types.void(types.float64, _floats, _floats, _ints, _floats, _floats),
}
ARGUMENTS = {
    "gradient": "(t, theta, data, dims, work, out) -> None",
    "loss": "(t, theta, data, dims, work) -> float",
    "hvp": "(t, theta, v, data, dims, work, out) -> None",
    "lane_gradient": "(t, theta, data, dims, work, out) -> None",
}


def _house_stamp() -> str:
    """Hash of the sources of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP = _house_stamp()


def kernel(function: Any = None, *, counted: bool = False, **options: Any) -> Any:
    """The decorator of all compiled code.

    Nothing is compiled before the first call; the interpreter lock is released, so that a progress
    display goes on during long calls.  The cached code is bound to the sources of *all* kernels, where
    numba alone would look at the function's own file only.

    References to arrays are not counted: that takes an atomic operation for each array of each call, more than the
    arithmetic of a small network, and more again where two threads count the same array.  Kernels allocate
    nothing and their arguments belong to the caller, so that nothing is lost; ``counted=True`` is for the few that
    make views for the routines of BLAS.
    """
    if function is None:
        return lambda f: kernel(f, counted=counted, **options)
    dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=counted, **options)(function)
    file = dispatcher._cache._cache_file
    file._source_stamp = (file._source_stamp, _STAMP)
    return dispatcher


class KernelType(types.FunctionType):
    """The type of a :class:`Kernel`: numba's of functions, but for how its address comes to compiled code."""


register_model(KernelType)(FunctionModel)  # in compiled code it is what numba's is


@unbox(KernelType)
def _unbox(kind: Any, function: Any, c: Any) -> NativeValue:
    """Read the address where it stands, for which numba would go through thirty functions of Python, three microseconds."""
    made = cgutils.create_struct_proxy(kind)(c.context, c.builder)
    address = c.pyapi.object_getattr_string(function, "address")
    made.c_addr = c.pyapi.long_as_voidptr(address)
    c.pyapi.decref(address)
    made.py_addr = c.builder.ptrtoint(function, c.context.get_value_type(types.voidptr))
    return NativeValue(made._getvalue())


class Kernel:
    """A compiled function of one frozen signature, to be passed to a compiled solver.

    It hands over a bare address and a ready-made type, which takes a fraction of a microsecond per call where
    numba's own dispatcher takes thirty to fifty.  ``call`` is the function for use from Python.
    """

    def __init__(self, dispatcher: Any, signature: Any) -> None:
        dispatcher.compile(signature.args)
        result = dispatcher.get_compile_result(signature)
        self.address = int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))
        self._numba_type_ = KernelType(signature)
        self.call = dispatcher


_KERNELS: dict[tuple[Any, str], Kernel] = {}


def as_kernel(function: Any, kind: str) -> Kernel:
    """Compile a model's function for its frozen signature, or take it from the cache.

    Parameters
    ----------
    function : numba dispatcher
        A function decorated with ``@njit``, without a signature of its own.
    kind : {"gradient", "loss", "hvp", "lane_gradient"}
        Which of the signatures.

    Raises
    ------
    ValueError
        If ``function`` is not an ``@njit`` function, or does not compile to the signature.
    """
    function = getattr(function, "__func__", function)  # numba binds dispatchers found on a class
    if not isinstance(function, Dispatcher):
        raise ValueError(
            f"model.{kind} must be a function decorated with numba.njit, with arguments "
            f"{ARGUMENTS[kind]}; got {type(function).__name__}"
        )
    made = _KERNELS.get((function, kind))
    if made is not None:
        return made
    try:
        made = _KERNELS[function, kind] = Kernel(function, SIGNATURES[kind])
        return made
    except (numba.core.errors.NumbaError, RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"model.{kind} must be decorated without a signature, and compile to {ARGUMENTS[kind]} with one-dimensional float64 arrays "
            f"(dims: int64) and a float64 t; numba says: {error}"
        ) from error


def has_kernel(function: Any, kind: str) -> bool:
    """Whether a model's function has been compiled."""
    return (getattr(function, "__func__", function), kind) in _KERNELS


_POINTERS: dict[Any, Kernel] = {}


def pointer(dispatcher: Any, arguments: Callable[[], tuple[Any, ...]]) -> Kernel:
    """A compiled loop that returns a code, as a first-class function for arguments of the types of these.

    They are asked for once: the types are the same for all models.  A compiled caller checks them.
    """
    made = _POINTERS.get(dispatcher)
    if made is None:
        signature = types.int64(*(numba.typeof(a) for a in arguments()))
        made = _POINTERS[dispatcher] = Kernel(dispatcher, signature)
    return made


_ENTRIES: dict[Any, Any] = {}


def call(loop: Any, *arguments: Any) -> Any:
    """Call a compiled loop from Python, without numba's look at the types of all arguments.

    They are those of the first call, the same for all models and runs, and to look at the arrays of a run takes longer
    than to unpack them: some four microseconds.  Nothing checks them after that: the caller has made these arrays.
    """
    entry = _ENTRIES.get(loop)
    if entry is None:
        types_of = tuple(numba.typeof(a) for a in arguments)
        loop.compile(types_of)
        entry = _ENTRIES[loop] = loop.overloads[types_of].entry_point
    return entry(*arguments)


def is_ready(loop: Any) -> bool:
    """Whether a loop that ``call`` calls has been compiled."""
    return loop in _ENTRIES


@kernel
def losses(loss, data, dims, work, thetas, out):
    """The loss at each row of ``thetas``."""
    for i in range(out.size):
        out[i] = loss(0.0, thetas[i], data, dims, work)
