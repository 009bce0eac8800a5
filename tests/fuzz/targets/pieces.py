"""How targets cut their inputs."""

from __future__ import annotations

from collections.abc import Iterator


def at_random_places(data: bytes, seed: int) -> Iterator[bytes]:
    """The same bytes in pieces, whose sizes follow from the seed; 0: in one."""
    state, begin = seed, 0
    while begin < len(data):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        size = len(data) if seed == 0 else 1 + (state >> 16) % (1 + 2 * seed)
        yield data[begin : begin + size]
        begin += size
