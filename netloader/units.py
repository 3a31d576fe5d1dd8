"""Bytes, rates, durations and counts as people write them."""


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in "s": "1 file", "3 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def size(nbytes: float) -> str:
    """Bytes in decimal units, as vendors and `ls --si` count: "269 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(nbytes) < 1000:
            return f"{nbytes:.3g} {unit}" if unit == "GB" else f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def rate(nbytes_per_s: float) -> str:
    """Bytes per second in GiB/s, or in MiB/s where that would be 0.0x."""
    gib = nbytes_per_s / 2**30
    return f"{gib:.2f} GiB/s" if gib >= 0.095 else f"{gib * 1024:.1f} MiB/s"


def duration(seconds: float) -> str:
    """Seconds as people say them: "4 ms", "0.6 s", "12 s", "2 min", "3 min 5 s"."""
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    parts = (f"{minutes} min" if minutes else "", f"{rest} s" if rest else "")
    return " ".join(filter(None, parts))
