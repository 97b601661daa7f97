"""How counts, times, sizes and intervals are said to people, the same everywhere."""

from __future__ import annotations


def many(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `5 min 12 s`, `2 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """`812 B`, `1.4 GB`, in powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(confidence: float) -> str:
    """`95%`, `97.5%`, `99.95%`: without digits that say nothing."""
    return f"{confidence * 100:.4g}%"


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """` [0.251, 0.429]`, to stand behind a number; nothing where there is none. `sign` is `+` for differences."""
    return "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
