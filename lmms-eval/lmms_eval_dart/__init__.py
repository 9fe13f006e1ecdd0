"""DART in lmms-eval: its entry-point group `lmms_eval.models` finds `manifests`, and with it our models."""

from __future__ import annotations

from typing import Any

MODELS = "lmms_eval_dart.models"


def manifests() -> list[Any]:
    """What lmms-eval registers (`ModelManifest`s): `qwen2_vl_dart`, `qwen2_5_vl_dart` and `llava_dart`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest("qwen2_vl_dart", simple_class_path=f"{MODELS}.qwen2_vl.Qwen2VLDart"),
        ModelManifest(
            "qwen2_5_vl_dart",
            simple_class_path=f"{MODELS}.qwen2_5_vl.Qwen2_5VLDart",
            chat_class_path=f"{MODELS}.qwen2_5_vl.Qwen2_5VLDartChat",
        ),
        ModelManifest("llava_dart", simple_class_path=f"{MODELS}.llava.LlavaDart"),
    ]
