"""The `sftc` program, and `python -m sftc`. It can be stopped from here on: what it imports takes seconds."""

import sys

from sftc import early


def main() -> int:
    early.listen()
    from sftc.cli import main

    code = main()
    early.check()
    return code


if __name__ == "__main__":
    sys.exit(main())
