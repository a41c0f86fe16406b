"""What the tests of sweeps share: functions to sweep, what they leave behind, and scripts in processes of their own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gflow

PACKAGE = Path(gflow.__file__).parent
AXES = {"a": [0.5, 1.0, 2.0], "b": range(4)}


def product(a, b, factor=1.0):
    return factor * a * b


def untouched(a, b=0):
    raise AssertionError("it ran")


class Counted:
    """A function on the disk of which stands how often it was called."""

    def __init__(self, path):
        self.path = path

    def __call__(self, a, b):
        count(self.path, f"{a} {b}")
        return a * 10 + b

    @property
    def calls(self):
        return lines(self.path)


def count(path, text):
    """One line in one write: lines of several processes do not mix."""
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def points(store):
    """Files of the finished points."""
    return sorted(Path(store).rglob("*.point"))


COUNT = """
def count(text):
    file = os.open(sys.argv[1], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{text}\\n".encode())
    os.close(file)
"""
SCRIPT = """
import json, os, sys
import numpy as np
import gflow
AXES = {{"a": [0.5, 1.0, 2.0], "b": range(4)}}
{count}
def f(a, b):
    count(f"{{a}} {{b}}")
    {body}
if __name__ == "__main__":
    {run}
"""
FOLDER = tempfile.TemporaryDirectory()
TIMEOUT = 600  # seconds: nothing but a machine that hangs takes so long


def start(script, *arguments, package=PACKAGE, **environment):
    """A process that runs a file, in a group of its own with its workers."""
    path = Path(FOLDER.name) / f"script{random.getrandbits(40)}.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments], env=os.environ | {"PYTHONPATH": str(package.parent)} | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def python(script, *arguments, **options):
    process = start(script, *arguments, **options)
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    return out
