"""Damage as disks, networks and editors do it, each a function of a seeded generator alone."""

from __future__ import annotations

import random

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four pieces of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(DAMAGE)(content, rng)
    return content


def flipped_bit(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flipped_byte(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] = rng.choice((*INTERESTING, rng.randrange(256)))
    return bytes(damaged)


def flipped_near(content: bytes, rng: random.Random) -> bytes:
    """A byte of the first or last 64: there stand headers, lengths and footers."""
    if not content:
        return content
    damaged, near = bytearray(content), rng.randrange(min(64, len(content)))
    damaged[near if rng.random() < 0.7 else -1 - near] = rng.choice((*INTERESTING, rng.randrange(256)))
    return bytes(damaged)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """A run of one byte, or of noise, over what stood there."""
    start, size = rng.randrange(len(content) + 1), rng.choice((4, 8, 16, 64))
    run = rng.randbytes(size) if rng.random() < 0.5 else bytes([rng.choice(INTERESTING)]) * size
    return content[:start] + run + content[start + size :]


def number(content: bytes, rng: random.Random) -> bytes:
    """A whole number of 2, 4 or 8 bytes at the edge of its range, where lengths and counts stand."""
    width = rng.choice((2, 4, 8))
    value = rng.choice(
        (0, 1, (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1), (1 << 8 * width) - 1, 1 << 31 % (8 * width))
    )
    start = rng.randrange(max(1, min(len(content), 256)))
    return content[:start] + value.to_bytes(width, rng.choice(("little", "big"))) + content[start + width :]


def removed(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 2, 7, 100)) :]


def repeated(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.choice((1, 8, 200))]
    return content[:start] + piece * rng.choice((2, 50)) + content[start:]


def swapped(content: bytes, rng: random.Random) -> bytes:
    """Two stretches in each other's place."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    size = min(rng.choice((1, 16, 128)), b - a)
    return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]


DAMAGE = (flipped_bit, flipped_byte, flipped_near, truncated, overwritten, number, removed, repeated, swapped)
