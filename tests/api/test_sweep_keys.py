"""Keys of the points of a sweep: all that a function reads, so that a store never serves what is old."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
from sweeping import COUNT, PACKAGE, SCRIPT, lines, points, product, python

import gflow
from gflow import _key
from gflow.sweeps import run

HELPERS = {
    "the same": ("def f(a): return K * a\nK = 2\n", "# a comment\n\ndef f(a):\n    return K * a\nK = 2\n", True),
    "an unread global": ("K = 2\nL = 1\ndef f(a): return K * a", "K = 2\nL = 2\ndef f(a): return K * a", True),
    "its code": ("def f(a): return 2 * a", "def f(a): return 3 * a", False),
    "a default": ("def f(a, k=2): return k * a", "def f(a, k=3): return k * a", False),
    "a keyword's default": ("def f(a, *, k=2): return k * a", "def f(a, *, k=3): return k * a", False),
    "a global": ("K = 2\ndef f(a): return K * a", "K = 3\ndef f(a): return K * a", False),
    "a global's type": ("K = 2\ndef f(a): return K * a", "K = 2.0\ndef f(a): return K * a", False),
    "an array": ("import numpy as np\nK = np.arange(3)\ndef f(a): return K @ K * a",
                 "import numpy as np\nK = np.arange(4)\ndef f(a): return K @ K * a", False),
    "a table": ("K = {'x': [1, (2, 3)]}\ndef f(a): return K['x'][0] * a", "K = {'x': [1, (2, 4)]}\ndef f(a): return K['x'][0] * a", False),
    "a helper": ("def g(a): return 2 * a\ndef f(a): return g(a)", "def g(a): return 3 * a\ndef f(a): return g(a)", False),
    "a helper's helper": ("def h(a): return 2 * a\ndef g(a): return h(a)\ndef f(a): return g(a)",
                          "def h(a): return 3 * a\ndef g(a): return h(a)\ndef f(a): return g(a)", False),
    "one that calls itself": ("def f(a): return a if a < 1 else f(a - 1)", "def f(a): return a if a < 2 else f(a - 1)", False),
    "an inner function": ("def f(a):\n    def g(): return 2 * a\n    return g()", "def f(a):\n    def g(): return 3 * a\n    return g()", False),
    "a lambda": ("f = lambda a: 2 * a", "f = lambda a: 3 * a", False),
    "what it encloses": ("def make(k):\n    def f(a): return k * a\n    return f\nf = make(2)",
                         "def make(k):\n    def f(a): return k * a\n    return f\nf = make(3)", False),
    "what a lambda in it encloses": ("def make(k):\n    g = lambda a: k * a\n    return lambda a: g(a)\nf = make(2)",
                                     "def make(k):\n    g = lambda a: k * a\n    return lambda a: g(a)\nf = make(3)", False),
    "a partial's keyword": ("from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=2)",
                            "from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=3)", False),
    "a partial's function": ("from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=2)",
                             "from functools import partial\ndef g(a, k): return k + a\nf = partial(g, k=2)", False),
    "a decorated function": ("import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 2 * a",
                             "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 3 * a", False),
    "the decorator": ("import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 2 * a",
                      "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a) + 1\n    return w\n@d\ndef f(a): return 2 * a", False),
    "a cached function": ("import functools\n@functools.cache\ndef g(a): return 2 * a\ndef f(a): return g(a)",
                          "import functools\n@functools.cache\ndef g(a): return 3 * a\ndef f(a): return g(a)", False),
    "compiled code": ("import numba\n@numba.njit\ndef g(a): return 2 * a\ndef f(a): return g(a)",
                      "import numba\n@numba.njit\ndef g(a): return 3 * a\ndef f(a): return g(a)", False),
    "a method": ("class C:\n    def g(self, a): return 2 * a\nc = C()\ndef f(a): return c.g(a)",
                 "class C:\n    def g(self, a): return 3 * a\nc = C()\ndef f(a): return c.g(a)", False),
    "a base class": ("class B:\n    def g(self, a): return 2 * a\nclass C(B): pass\ndef f(a): return C().g(a)",
                     "class B:\n    def g(self, a): return 3 * a\nclass C(B): pass\ndef f(a): return C().g(a)", False),
    "an object's state": ("class C:\n    def __init__(self, k): self.k = k\nc = C(2)\ndef f(a): return c.k * a",
                          "class C:\n    def __init__(self, k): self.k = k\nc = C(3)\ndef f(a): return c.k * a", False),
    "an object with slots": ("class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nc = C(2)\ndef f(a): return c.k * a",
                             "class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nc = C(3)\ndef f(a): return c.k * a", False),
    "a bound method's object": ("class C:\n    def __init__(self, k): self.k = k\n    def g(self, a): return self.k * a\nf = C(2).g",
                                "class C:\n    def __init__(self, k): self.k = k\n    def g(self, a): return self.k * a\nf = C(3).g", False),
    "a callable object": ("class C:\n    def __call__(self, a): return 2 * a\nf = C()",
                          "class C:\n    def __call__(self, a): return 3 * a\nf = C()", False),
    "a problem": ("import gflow\nP = gflow.Problem.factorization([[2.0]])\ndef f(a): return P.Y.sum() * a",
                  "import gflow\nP = gflow.Problem.factorization([[3.0]])\ndef f(a): return P.Y.sum() * a", False),
    "the same problem": ("import gflow\nP = gflow.Problem.factorization([[2.0]])\ndef f(a): return P.Y.sum() * a",
                         "import gflow\nP = gflow.Problem.factorization([[2.0]])\nP.__dict__.setdefault('x', 0) and 0\ndel P.__dict__['x']\ndef f(a): return P.Y.sum() * a", True),
    "a table's order": ("K = {'x': 2, 'y': 3}\ndef f(a): return list(K.values())[0] * a", "K = {'y': 3, 'x': 2}\ndef f(a): return list(K.values())[0] * a", False),
    "how it is compiled": ("import numba\n@numba.njit\ndef f(a): return 2 * a", "import numba\n@numba.njit(fastmath=True)\ndef f(a): return 2 * a", False),
    "a metaclass": ("class M(type):\n    def g(c, a): return 2 * a\nclass C(metaclass=M): pass\ndef f(a): return C.g(a)",
                    "class M(type):\n    def g(c, a): return 3 * a\nclass C(metaclass=M): pass\ndef f(a): return C.g(a)", False),
    "an operator that is a partial": ("from functools import partial\nclass C: __call__ = partial(max, 2)\nf = C()",
                                      "from functools import partial\nclass C: __call__ = partial(max, 3)\nf = C()", False),
    "what a try covers": ("def f(a):\n    try:\n        a = g(a)\n        a = g(a)\n    except KeyError:\n        a = 0\n    return a\ndef g(a): return a",
                          "def f(a):\n    try:\n        a = g(a)\n    except KeyError:\n        a = 0\n    a = g(a)\n    return a\ndef g(a): return a", False),
}  # fmt: skip


@pytest.mark.parametrize("name", HELPERS)
def test_what_a_function_reads_is_in_its_key(name, tmp_path, monkeypatch):
    before, after, same = HELPERS[name]
    monkeypatch.syspath_prepend(tmp_path)
    keys = [_key.key_of(load(tmp_path, "mod_of_user", text).f, {})[0] for text in (before, before, after)]
    assert keys[0] == keys[1]
    assert (keys[1] == keys[2]) == same


def load(folder, name, text):
    """A module of this text, imported anew."""
    (folder / f"{name}.py").write_text(text)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.mark.parametrize("use", ["import helper_of_user\ndef f(a): return helper_of_user.g(a)",
                                 "from helper_of_user import g\ndef f(a): return g(a)",
                                 "def f(a):\n    from helper_of_user import g\n    return g(a)",
                                 "def f(a):\n    import helper_of_user as h\n    return h.g(a)",
                                 "import helper_of_user\ndef f(a): return (lambda: helper_of_user.g(a))()",
        "import helper_of_user as h\ndef f(a): return [h][0].g(a)",
        "import helper_of_user as h\ndef f(a): return getattr(h, 'K')[0] * h.g(a)",
        "def f(a):\n    from helper_of_user import __doc__, g\n    return g(a)",
        "import helper_of_user\nclass C:\n    def g(self, a): return helper_of_user.g(a)\nc = C()\ndef f(a): return c.g(a)"])  # fmt: skip
def test_helpers_of_other_modules_are_in_the_key(use, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for text in ("K = [2]\ndef g(a): return K[0] * a", "# \nK = [2]\ndef g(a): return K[0] * a", "K = [3]\ndef g(a): return K[0] * a",
                 "K = [2]\ndef g(a): return K[0] + a"):  # fmt: skip
        load(tmp_path, "helper_of_user", text)
        keys.append(_key.key_of(load(tmp_path, "mod_of_user", use).f, {})[0])
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_file_of_compiled_code_of_the_users_is_in_the_key(tmp_path, monkeypatch):
    class Compiled:  # pickles by its name alone, as functions of Cython do
        __module__ = "compiled_of_user"

        def __reduce__(self):
            return "g"

    module = types.ModuleType("compiled_of_user")
    module.__file__ = str(tmp_path / "compiled_of_user.so")
    monkeypatch.setitem(sys.modules, "compiled_of_user", module)
    keys = []
    for data in (b"one", b"one", b"another"):
        Path(module.__file__).write_bytes(data)
        keys.append(_key.key_of(product, {"g": Compiled()})[0])
    assert keys[0] == keys[1] != keys[2]


def test_settings_and_versions_are_in_the_key(monkeypatch):
    def key(**settings):
        return _key.key_of(product, settings)[0]

    keys = [key(), key(factor=1.0), key(factor=1), key(factor=np.ones(2)), key(factor=np.ones((2, 1)))]
    monkeypatch.setattr(_key, "versions", lambda: {"gflow": "another"})
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(_key, "gflow_source", lambda: "another")
    keys.append(key())
    assert len(set(keys)) == 7


def test_keys_are_the_same_in_another_process(tmp_path):
    text = """
        import sys; sys.path.insert(0, {folder!r})
        import mod_of_user
        from gflow import _key
        print(_key.key_of(mod_of_user.f, {{"names": {{"x", "y", "zebra", "word"}}, "n": 3}})[0])
    """
    (tmp_path / "mod_of_user.py").write_text(
        "import dataclasses, enum, re, numpy as np, gflow\nfrom scipy.stats import norm\nclass E(enum.Enum):\n    A = 1\n    B = 'b'\n"
        "@dataclasses.dataclass(frozen=True)\nclass D:\n    k: int = 2\n    s: tuple = ('x', E.B)\n"
        "d = D()\nm = gflow.DeepLinear((2, 2, 2))\nr = np.random.default_rng(1)\np = re.compile('x')\n"
        "def f(a): return a * d.k + m.size + {'p', 'q', 'rr'}.__len__() + r.random() + norm.pdf(a) + len(p.pattern)\n"
    )
    script = textwrap.dedent(text.format(folder=str(tmp_path)))
    found = {python(script, PYTHONHASHSEED=seed).strip() for seed in ("1", "2")}
    assert len(found) == 1


@pytest.mark.slow
def test_another_source_of_gflow_gives_no_old_results(tmp_path):
    package = tmp_path / "other" / "gflow"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    calls = tmp_path / "calls"
    run = f"gflow.sweep(f, AXES, {str(tmp_path / 'store')!r}, 1)"
    script = SCRIPT.format(count=COUNT, body="return a + b", run=f"{run}; {run}")
    python(script, str(calls), package=package)
    assert len(lines(calls)) == 12
    with open(package / "observe.py", "a") as file:
        file.write("\n# another line\n")
    python(script, str(calls), package=package)
    assert len(lines(calls)) == 24

    stale = "import os; os.utime(gflow.__path__[0] + '/observe.py', (2e9, 2e9)); "
    script = SCRIPT.format(count=COUNT, body="return a + b", run=stale + run)
    with pytest.raises(
        AssertionError, match="ValueError: store needs .*observe.py has changed since this process"
    ):
        python(script, str(calls), package=package)
    assert len(lines(calls)) == 24


def test_workers_refuse_a_helper_that_was_edited_after_its_import(tmp_path, store, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = load(tmp_path, "edited_of_user", "K = 2\ndef f(a): return K * a")
    module.K = 5  # here, but not in what a worker imports
    with pytest.raises(
        ValueError, match=r"the same in the workers as here; .* edited_of_user:K is not what it is"
    ):
        gflow.sweep(module.f, {"a": [1, 2]}, store, 2)
    module.K = 2
    (tmp_path / "edited_of_user.py").write_text("K = 2\ndef f(a): return K + a + 1")
    run._new_workers()  # older ones have imported what this process has, and may run it
    with pytest.raises(
        ValueError, match=r"the same in the workers as here; .* edited_of_user:f is not what it is"
    ):
        gflow.sweep(module.f, {"a": [1, 2]}, store, 2)
    assert points(store) == []
    assert list(gflow.sweep(module.f, {"a": [1, 2]}, store, 1).value) == [2, 4]


def test_a_helper_that_was_edited_and_imported_anew_reaches_the_workers(tmp_path, store, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for k in (2, 3):
        module = load(tmp_path, "reloaded_of_user", f"K = {k}\ndef f(a): return K * a")
        assert list(gflow.sweep(module.f, {"a": [1, 2]}, store, 2).value) == [k, 2 * k]
