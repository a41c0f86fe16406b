"""Refusing what would not fit into memory, before anything runs."""

from __future__ import annotations

_ALWAYS_FITS = 2**28


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def refuse_if_too_large(argument: str, what: str, needed: int) -> None:
    """Raise a ValueError that names the argument if so many bytes are not to be had."""
    if needed < _ALWAYS_FITS:
        return
    free = available_memory()
    if free is not None and needed > 0.9 * free:
        raise ValueError(
            f"{argument} asks for {needed / 1e9:.1f} GB of {what}; {free / 1e9:.1f} GB are available. "
            "Save fewer of them, or observe what you need on the way"
        )
