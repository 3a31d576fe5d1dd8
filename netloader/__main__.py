"""`python -m netloader`: the command `netloader`, where its script is not on the path."""

import sys

from netloader.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
