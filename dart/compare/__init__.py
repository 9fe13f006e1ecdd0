"""Every method at every budget on one or more data sets: `python -m dart.compare --help`."""
