"""Moved to `dart.utils`."""

from dart.utils import INTERRUPTED, USAGE_ERROR, Parser, UserError, exits_cleanly, one_line

__all__ = ["INTERRUPTED", "USAGE_ERROR", "Parser", "UserError", "exits_cleanly", "one_line"]
