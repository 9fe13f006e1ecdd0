"""`python -m dart.compare`: see `python -m dart.compare --help`."""

from dart.compare.command import main

if __name__ == "__main__":
    main()
