"""`python -m dart`: one question about pictures or videos, answered with and without DART."""
