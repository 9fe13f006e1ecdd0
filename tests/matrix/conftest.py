"""The matrix compares many small models: one thread each is quickest, and warnings about raised layers are expected."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("dart.engine.attach").setLevel(logging.ERROR)
    yield
    torch.set_num_threads(threads)
    logging.getLogger("dart.engine.attach").setLevel(logging.NOTSET)
