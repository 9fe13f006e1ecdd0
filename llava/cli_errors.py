"""One clear line for every mistake a user can make on a command line: the same for all of this project's commands."""

from dart.utils import INTERRUPTED, USAGE_ERROR, UserError, exits_cleanly, one_line

__all__ = ["INTERRUPTED", "USAGE_ERROR", "UserError", "exits_cleanly", "one_line"]
