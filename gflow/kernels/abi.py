"""The one frozen signature by which every solver calls every model.

Kernels take arrays and give arrays: all one-dimensional, C-contiguous, 64-bit.
A solver receives a kernel as a first-class function of the types below, so it is
compiled once for all models, and its machine code is served from numba's
on-disk cache in later processes.

Cache policy.  Numba notices an edit of the file that a cached function stands in,
but not of the files whose functions it calls.  A family's kernels therefore live
in one file, and so does each solver with its helpers; everything else reaches
compiled code as an argument.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
from numba import types
from numba.core.dispatcher import Dispatcher

_floats = types.float64[::1]
_ints = types.int64[::1]

#: ``gradient(t, theta, data, dims, work, out)``: writes the gradient of the loss to ``out``.
GRADIENT = types.void(types.float64, _floats, _floats, _ints, _floats, _floats)
#: ``loss(t, theta, data, dims, work)``: returns the loss.
LOSS = types.float64(types.float64, _floats, _floats, _ints, _floats)
#: ``hvp(t, theta, v, data, dims, work, out)``: writes the Hessian times ``v`` to ``out``.
HVP = types.void(types.float64, _floats, _floats, _floats, _ints, _floats, _floats)

#: The decorator of all compiled code.  Nothing is compiled before the first call; the
#: interpreter lock is released, so that a progress display goes on during long calls.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

_ARGUMENTS = {
    GRADIENT: "(t, theta, data, dims, work, out) -> None",
    LOSS: "(t, theta, data, dims, work) -> float",
    HVP: "(t, theta, v, data, dims, work, out) -> None",
}


class Kernel(types.WrapperAddressProtocol):
    """A compiled function of one frozen signature, to be passed to a compiled solver.

    It hands over a bare address, which takes a few microseconds per call where numba's own
    dispatcher takes thirty to fifty.  Called from Python, it is the compiled function.
    """

    def __init__(self, dispatcher: Any, signature: Any) -> None:
        dispatcher.compile(signature.args)
        result = dispatcher.get_compile_result(signature)
        self._address = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)
        self._signature = signature
        self.call = dispatcher

    def __wrapper_address__(self) -> int:
        return int(self._address)

    def signature(self) -> Any:
        return self._signature


@cache
def _compiled(dispatcher: Any, signature: Any) -> Kernel:
    return Kernel(dispatcher, signature)


def as_kernel(function: Any, signature: Any, name: str) -> Kernel:
    """Compile a function for its frozen signature, or take it from the cache.

    Parameters
    ----------
    function : numba dispatcher
        A function decorated with ``@njit``, without a signature of its own.
    signature
        One of ``GRADIENT``, ``LOSS``, ``HVP``.
    name : str
        What to call the function in an error message.

    Raises
    ------
    ValueError
        If ``function`` is not an ``@njit`` function, or does not compile to the signature.
    """
    function = getattr(function, "__func__", function)  # numba binds dispatchers found on a class
    if not isinstance(function, Dispatcher):
        raise ValueError(
            f"{name} must be a function decorated with numba.njit, with arguments "
            f"{_ARGUMENTS[signature]}; got {type(function).__name__}"
        )
    try:
        return _compiled(function, signature)
    except (numba.core.errors.NumbaError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{name} must compile to {_ARGUMENTS[signature]} with one-dimensional float64 arrays "
            f"(dims: int64) and a float64 t; numba says: {error}"
        ) from error


@kernel
def losses(loss, data, dims, work, thetas, out):
    """The loss at each row of ``thetas``."""
    for i in range(out.size):
        out[i] = loss(0.0, thetas[i], data, dims, work)
