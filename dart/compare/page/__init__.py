"""The report: one HTML file with its data, styles and script in it, which opens without a network."""

from dart.compare.page.build import to_html

__all__ = ["to_html"]
