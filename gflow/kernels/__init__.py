"""Compiled code: numpy and numba only, arrays in, arrays out, allocation-free, never raising."""
