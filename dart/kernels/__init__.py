from __future__ import annotations


def select_rows(batch, config):
    return None
