"""DART: keep the vision tokens that duplicate the others least (arXiv 2502.11494)."""

from dart import strategies
from dart.config import DartConfig
from dart.pruner import PruneHandle, prune
from dart.report import PruneReport
from dart.selection import select

__version__ = "0.1.0"

__all__ = ["DartConfig", "PruneHandle", "PruneReport", "prune", "select", "strategies"]
