"""A pytest plugin (`pytest -p lmms_eval_dart.testing`): torchvision is imported before the first test file needs it."""

from lmms_eval_dart.torchvision_ops import import_torchvision

import_torchvision()
