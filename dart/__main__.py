"""`python -m dart`: see `python -m dart --help`."""

from dart.cli import main

if __name__ == "__main__":
    main()
