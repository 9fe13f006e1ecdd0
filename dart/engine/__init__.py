"""The engine: from a model's forward to shortened decoder layers. A map of it is in docs/how-it-works.md."""
