"""DART: keep the vision tokens that duplicate the others least (arXiv 2502.11494)."""

from dart import strategies
from dart.config import DartConfig
from dart.engine.attach import PruneHandle, handle_of, prune
from dart.engine.selection import select
from dart.report import PruneReport

__version__ = "0.2.0"

__all__ = ["DartConfig", "PruneHandle", "PruneReport", "handle_of", "prune", "select", "strategies"]
