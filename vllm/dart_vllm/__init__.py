"""DART in vLLM: visual tokens are dropped before the language model. vLLM's entry-point group `vllm.general_plugins`
finds `register`. What the plugin knows of vLLM's models is in `dart_vllm.seam`, what a request may ask for in
`dart_vllm.settings`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from dart_vllm.settings import KEY, config_of

MODELS = {
    "Qwen2VLForConditionalGeneration": "PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "PrunedQwen2_5VL",
    "Qwen3VLForConditionalGeneration": "PrunedQwen3VL",
    "InternVLForConditionalGeneration": "PrunedInternVL",
    "LlavaForConditionalGeneration": "PrunedLlava",
    "LlavaNextForConditionalGeneration": "PrunedLlavaNext",
}
TESTED = ("0.31", "0.32")  # releases of vLLM, all between them included


def register() -> None:
    """Put our models in the place of vLLM's. vLLM calls it once in every process. Raises RuntimeError in a release
    whose insides may be others than `dart_vllm.seam` knows."""
    from vllm import ModelRegistry, __version__

    release = tuple(map(int, __version__.split(".")[:2]))
    oldest, newest = (tuple(map(int, tested.split("."))) for tested in TESTED)
    if not oldest <= release <= newest:
        raise RuntimeError(
            f"{KEY}: the plugin is for vLLM {TESTED[0]} to {TESTED[1]}, this is {__version__}: install one of those, "
            'or take the plugin off with VLLM_PLUGINS=""'
        )
    for architecture, model in MODELS.items():
        ModelRegistry.register_model(architecture, f"dart_vllm.seam:{model}")  # read when a model of that name is made
    _refuse_others()


def asked_of(processor: Any, kwargs: Mapping[str, Any]) -> Any:
    """What the request asks for, or else the server (`--mm-processor-kwargs`). A request's `dart` replaces the
    server's: vLLM would merge the fields of both."""
    if KEY in kwargs:
        return kwargs[KEY]
    return (processor.info.ctx.get_mm_config().mm_processor_kwargs or {}).get(KEY)


def _refuse_others() -> None:
    """A model that we do not prune would ignore `dart`: its requests are refused, not answered unpruned."""
    from vllm.multimodal.processing import BaseMultiModalProcessor

    apply = BaseMultiModalProcessor.apply
    if getattr(apply, "refuses_dart", False):
        return

    @wraps(apply)
    def checked(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        config = config_of(asked_of(self, inputs.hf_processor_mm_kwargs))
        if config is not None and not getattr(self, "prunes", False):
            name = type(self).__name__.removesuffix("MultiModalProcessor")
            raise ValueError(f"{KEY}: {name} is no family that the plugin prunes; known: {', '.join(MODELS)}")
        return apply(self, inputs, *args, **kwargs)

    checked.refuses_dart = True  # type: ignore[attr-defined]
    BaseMultiModalProcessor.apply = checked  # type: ignore[method-assign]
