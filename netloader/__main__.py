"""`python -m netloader`: which version is installed, and whether its files are its own."""

import sys
from importlib.metadata import PackageNotFoundError, version

from netloader.installed import OURS, mixed


def main() -> int:
    """Say so; 1 if the files of another project lie among these."""
    if problem := mixed():
        sys.stderr.write(f"{problem}\n")
        return 1
    try:
        sys.stdout.write(f"{OURS} {version(OURS)}\n")
    except PackageNotFoundError:
        sys.stdout.write(f"{OURS} is imported from its sources, and not installed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
