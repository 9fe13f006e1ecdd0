"""Puts token pruning on a model with forward hooks, and takes it off again.

A handle knows the model and the settings, and nothing of any forward: that is `dart.engine.forward`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dart import strategies
from dart.config import DartConfig
from dart.engine import layers as surface
from dart.engine.budgets import check_budget
from dart.engine.forward import CURRENT, FINISHED, SAVED, Forward, current, prompt_of
from dart.engine.layers import Recorder
from dart.engine.layout import cache_layer, is_static, layout_of, stored_tokens
from dart.engine.losses import loss_of_kept
from dart.engine.masks import gather_mask
from dart.engine.selection import selector
from dart.engine.tower import Tower
from dart.families import family_of
from dart.report import PruneReport
from dart.strategies.base import Stage

logger = logging.getLogger(__name__)
ATTACHED = "_dart_handle"
OF_ATTENTION = frozenset({"keys", "values", "attention"})
NEXT = "next_attention"
TRL_LOSS = "fused_lm_head"  # the argument by which TRL's trainers tell a forward to compute their loss
ENCODED = "mm_encoder_outputs"  # the argument in which `generate` of transformers 5.24 gives images' features
LOSS_ARGUMENTS = ("shift_labels", "ignore_index")  # of transformers' loss, which count or name labels by themselves


def unwrapped(model: Any) -> Any:
    """The transformers model inside torch.compile's, peft's or a parallel wrapper; a model without one as it is."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None or inner is model:
            return model
        model = inner


class PruneHandle:
    """Pruning attached to one model: `remove()` it, or use it in a `with`.

    config: with the layer that was really used; last: the report of the last prefill with visual tokens, of whichever
    thread finished last.
    """

    def __init__(self, model: nn.Module, config: DartConfig):
        self.outer, self.model = model, unwrapped(model)
        self.family = family_of(self.model)
        self.decoder: Any = self.family.decoder(self.model)
        if getattr(self.model.config, "DART_config", None) is None:
            # A switch that was turned off since the last forward detaches here.
            getattr(self.model, "dart_handle", None)
        if handle_of(self.model) is not None:
            raise ValueError("this model is pruned already: remove the first handle before calling dart.prune again")
        self.layers = surface.read_layers(self.decoder)
        self.norm = self.family.final_norm(self.decoder)
        self.strategy = strategies.get(config.strategy)
        self.config, self.selectors = self._placed(config)
        self.stages = self.selectors[0].stages if self.selectors else ()
        self.needs = self.strategy.needed(config)
        self.tower = Tower(self)
        self.last: PruneReport | None = None
        self._hooks: list[Any] = []
        self._attach()

    def __enter__(self) -> PruneHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off. Calling it twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if getattr(self.decoder, ATTACHED, None) is self:
            delattr(self.decoder, ATTACHED)
        if getattr(vars(self.model).get("generate"), "__self__", None) is self:
            del self.model.generate
        surface.forget_compiled(self.outer)
        surface.forget_compiled(self.model)

    def prepare(self, images: Iterable[Any]) -> list[Any]:
        """PIL images as the strategy wants them, to be given to the processor: as many, in the same order.

        Most strategies change nothing; `downsample` makes them smaller.
        """
        return [self.strategy.pixels(image, self.config) for image in images]

    @property
    def attached(self) -> bool:
        """Are its hooks on the model?"""
        return bool(self._hooks)

    @property
    def flash(self) -> bool:
        """Does the model run flash attention now?"""
        return "flash" in self.decoder.config._attn_implementation

    def _placed(self, config: DartConfig) -> tuple[DartConfig, list[Any]]:
        """The config and the strategy's stages, none of them earlier than the model and the signals allow."""
        selectors = selector(config, len(self.layers))
        needs = self.strategy.needed(config)
        stages: list[Stage] = []
        for stage in selectors[0].stages if selectors else ():
            layer = max(stage.layer, self.family.earliest_layer(self.model))
            while layer < len(self.layers) and self._lacks_attention(needs, layer):
                layer += 1
            if layer != stage.layer:
                logger.warning(
                    "%s: layer=%d is raised to %d, the first one after all visual features have been added and where "
                    "strategy %r has its signals",
                    type(self.model).__name__,
                    stage.layer,
                    layer,
                    config.strategy,
                )
            if layer == 0 and (missing := needs & {"attention", "values", "previous"}):
                raise ValueError(
                    f"strategy {config.strategy!r} needs {', '.join(sorted(missing))}, which a decoder has after its "
                    "first layer: choose layer=1 or more"
                )
            if NEXT in needs and layer < len(self.layers):
                module = self.decoder.layers[layer]
                if self.layers[layer].shares or not hasattr(module, "input_layernorm"):
                    raise ValueError(
                        f"strategy {config.strategy!r} needs the attention of layer {layer} before it runs, which "
                        f"{type(module).__name__} cannot give: it has no `input_layernorm`, or no keys of its own"
                    )
            for number, each in enumerate(self.layers):
                if each.shares and each.slot < layer <= number:
                    raise ValueError(
                        f"layer {number} reads the keys of layer {each.slot}: {type(self.model).__name__} cannot be "
                        f"pruned at layer {layer}, choose one up to {each.slot}"
                    )
            stages.append(replace(stage, layer=layer))
        numbers = [stage.layer for stage in stages]
        if len(stages) > 1 and (len(set(numbers)) < len(stages) or numbers[-1] >= len(self.layers)):
            raise ValueError(
                f"strategy {config.strategy!r} drops tokens at {len(stages)} layers, of which this decoder of "
                f"{len(self.layers)} leaves {', '.join(map(str, numbers))}: choose others"
            )
        check_budget(config, tuple(stages), len(self.layers))
        placed = [replace(each, stages=tuple(stages)) for each in selectors]
        if len(stages) == 1:
            config = replace(config, layer=stages[0].layer)
        return config, placed

    def _lacks_attention(self, needs: frozenset[str], layer: int) -> bool:
        """Does a stage at `layer` need a softmax attention where this decoder has another kind of layer?"""
        before = bool(needs & OF_ATTENTION) and layer > 0 and self.layers[layer - 1].recurrent
        return before or (NEXT in needs and self.layers[layer].recurrent)

    def _attach(self) -> None:
        count = len(self.layers)
        first = self.stages[0].layer if self.stages else None
        if first is not None and first >= count:
            logger.warning("layer=%d but the model has %d decoder layers: nothing will be pruned", first, count)
            return
        if surface.forget_compiled(self.outer) or surface.forget_compiled(self.model):
            logger.warning("%s was compiled: it will be compiled again, with DART", type(self.model).__name__)
        setattr(self.decoder, ATTACHED, self)
        self.model.generate = self._generate
        entries = [self.outer] if self.outer is not self.model else []
        entries += [m for _, m in self.model.named_modules() if m is not self.decoder and self._leads_to_decoder(m)]
        on = {"with_kwargs": True}
        for module in entries:
            self._hook(module.register_forward_pre_hook(self._enter, **on))
        self._hook(self.decoder.register_forward_pre_hook(self._enter_decoder, **on))
        self.tower.attach(self._hook)
        raw, stages = self.decoder.layers, [stage.layer for stage in self.stages]
        for number in range(count if first is None else max(first - 1, 0), count):
            self._hook(raw[number].register_forward_pre_hook(partial(self._before_layer, number), **on))
            attention = self.layers[number].attention
            if number + 1 in stages and self.needs & OF_ATTENTION and attention is not None:
                self._hook(attention.register_forward_pre_hook(partial(self._before_attention, number), **on))
        for module in [*entries[::-1], self.decoder]:
            self._hook(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))

    def _hook(self, hook: Any) -> None:
        self._hooks.append(hook)

    def _leads_to_decoder(self, module: nn.Module) -> bool:
        return any(child is self.decoder for child in module.modules())

    # Hooks, in the order in which a forward meets them. In a step of one token that torch compiles they have nothing to
    # do but to pick columns of masks; a longer forward leaves the traced graph for them.

    def _traced(self, work: Any, module: nn.Module, args: tuple, kwargs: dict, *more: Any) -> Any:
        if not torch.compiler.is_compiling():
            return work(module, args, kwargs, *more)
        return None if _tokens(args, kwargs) == 1 else _untraced(work, module, args, kwargs, *more)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        return self._traced(self._enter_now, module, args, kwargs)

    def _enter_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        return self._traced(self._enter_decoder_now, module, args, kwargs)

    def _before_layer(self, number: int, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        if torch.compiler.is_compiling() and _tokens(args, kwargs) == 1:
            return self._before_compiled_layer(number, args, kwargs)
        return self._traced(partial(self._before_layer_now, number), module, args, kwargs)

    def _before_attention(self, number: int, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        if torch.compiler.is_compiling() and "attention" not in self.needs:
            return None  # the layer's hook has handed it a recorder
        return self._traced(partial(self._before_attention_now, number), module, args, kwargs)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        return self._traced(self._leave_now, module, args, kwargs, output)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, with the prompt's length known to the engine."""
        inputs = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        embeds = kwargs.get("inputs_embeds")
        prompt = embeds if embeds is not None else inputs
        config = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        generate = partial(type(self.model).generate, self.model)
        if not isinstance(prompt, torch.Tensor) or prompt.ndim < 2 or self.family.expands_prompts:
            return generate(*args, **kwargs)
        with prompt_of(int(prompt.shape[1]), chunk is not None, inputs if embeds is None else None, kwargs):
            return generate(*args, **kwargs)

    def _enter_now(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        forward = self._forward(module)
        arguments = surface.bound(module, args, kwargs)
        forward.look(arguments)
        self._check_embeddings(forward, arguments)
        if isinstance(arguments.get("logits_to_keep"), torch.Tensor) and forward.has_visual():
            raise ValueError(
                "logits_to_keep as positions would count the tokens that are left, not the prompt's: give a number of "
                "last tokens, or 0 for all"
            )
        if arguments.get("labels") is None or self.family.aligns_labels or not forward.has_visual():
            return None
        self._check_labels(forward, arguments)
        if kwargs.get(TRL_LOSS):
            raise ValueError(
                f"TRL's loss ({TRL_LOSS}=True) has no place for tokens that are dropped: give your class of TRL's "
                "trainer the loss of transformers, compute_loss = transformers.Trainer.compute_loss (docs/training.md)"
            )
        forward.labels = arguments["labels"]
        return (), {**arguments, "labels": None}

    def _check_embeddings(self, forward: Forward, arguments: dict[str, Any]) -> None:
        """Raises ValueError for images whose tokens nobody can find: they would all be kept without a word."""
        images = [
            name
            for name, each in arguments.items()
            if each is not None and name.startswith("pixel_values") or name == ENCODED and each
        ]
        if images and forward.spans is None and arguments.get("inputs_embeds") is not None:
            raise ValueError(
                f"inputs_embeds came with images ({images[0]}) and without input_ids, by which visual tokens are "
                "found: give input_ids instead, or remove the handle"
            )

    def _check_labels(self, forward: Forward, arguments: dict[str, Any]) -> None:
        """Raises ValueError for labels that the loss over the tokens that are left cannot be taken from."""
        wanted, given = forward.spans.numpy().shape, tuple(arguments["labels"].shape)  # type: ignore[union-attr]
        if given != wanted:
            raise ValueError(f"labels must be {list(wanted)}, one for each token of the prompt, got {list(given)}")
        if more := [name for name in LOSS_ARGUMENTS if arguments.get(name) is not None]:
            raise ValueError(
                f"{more[0]} has no place where tokens are dropped: give labels with -100 where there is no loss alone"
            )

    def _forward(self, module: nn.Module) -> Forward:
        """The forward that this thread is in; a new one where `module` is the first of this handle's to be called."""
        forward = current(self)
        if forward is None or forward.owner is module:
            outer = CURRENT.get() if forward is None else forward.outer
            forward = Forward(self, module, outer)
            CURRENT.set(forward)
        return forward

    def _enter_decoder_now(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        forward = self._forward(module)
        arguments = surface.bound(module, args, kwargs)
        forward.look(arguments)
        forward.enter_decoder(arguments)
        if not self.stages:
            forward.count_visual()
        if surface.HOOKS_RUN_AGAIN and surface.checkpoints(self.decoder.layers[0]):
            return args, {**kwargs, SAVED: forward}
        return None

    def _before_layer_now(self, number: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        saved = kwargs.pop(SAVED, None)
        layer = self.layers[number]
        forward = saved or current(self)
        changed = (args, kwargs) if saved is not None else None
        if forward is None:
            return changed
        if surface.HOOKS_RUN_AGAIN and saved is None and forward.wants(0) and surface.checkpoints(module):
            raise ValueError(
                f"{type(self.decoder).__name__} hands its arguments not on to its layers: under gradient checkpointing "
                "DART needs transformers 5.20 or newer here"
            )
        arguments = {**dict(zip(layer.takes, args, strict=False)), **kwargs}
        hidden = arguments["hidden_states"]
        for stage, place in enumerate(self.stages):
            if place.layer == number:
                forward.select(stage, number, hidden, arguments)
            elif place.layer == number + 1 and forward.wants(stage):
                changed = self._record(forward, number, module, hidden, args, kwargs) or changed
        others = {name: value for name, value in arguments.items() if name != "hidden_states"}
        got = forward.arguments(number, layer, hidden, others)
        if got is None:
            return changed
        hidden, others = got
        if layer.cache in kwargs and changed is not None:
            others[layer.cache] = changed[1][layer.cache]
        # What came by position goes by position: reentrant checkpointing detaches these alone.
        return (hidden, *(others.pop(name) for name in layer.takes[1 : len(args)])), others

    def _before_compiled_layer(self, number: int, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """A traced step: the mask's columns that the layer's slots hold, from the cache's own tensors alone."""
        layer = self.layers[number]
        cache = kwargs.get(layer.cache)
        own = None if layer.recurrent else cache_layer(cache, layer.slot)
        layout, mask = layout_of(own), kwargs.get("attention_mask")
        if layout is None or not is_static(cache) or mask is None:
            return None
        if own is not None and mask.shape[-1] < own.full_length:
            raise ValueError(
                "a compiled step on a static cache with sliding windows cannot be pruned: do not compile it"
            )
        columns = layout.columns(*stored_tokens(own))
        return args, {**kwargs, "attention_mask": gather_mask(mask, None, columns, 1, 0, False, False)}

    def _record(
        self, forward: Forward, number: int, module: Any, hidden: torch.Tensor, args: tuple, kwargs: dict
    ) -> tuple | None:
        """Before the last layer in front of a stage: remember what its strategy will ask for."""
        if "previous" in self.needs:
            forward.states[number] = hidden.detach()
        # A checkpointed layer takes its cache away from its attention, which gets the recorder itself then.
        if not self.needs & OF_ATTENTION or surface.checkpoints(module):
            return None
        name = self.layers[number].cache
        forward.recorders[number] = Recorder(kwargs.get(name))
        return args, {**kwargs, name: forward.recorders[number]}

    def _before_attention_now(
        self, number: int, module: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        forward = current(self)
        stage = [place.layer for place in self.stages].index(number + 1)
        if forward is None or not forward.wants(stage):
            return None
        arguments = surface.bound(module, args, kwargs)
        if "attention" in self.needs:
            forward.given[number] = arguments
        if number in forward.recorders:
            return None
        name = str(surface.cache_argument(module))
        forward.recorders[number] = Recorder(arguments.get(name))
        return (), {**arguments, name: forward.recorders[number]}

    def _leave_now(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        forward = current(self)
        if forward is None:
            return None
        if forward.owner is module:
            CURRENT.set(forward.outer)
            FINISHED.set(forward)
        if forward.labels is None or output is None or not (module is self.model or module is self.outer):
            return None
        labels, forward.labels = forward.labels, None
        return loss_of_kept(self.model, output, labels, forward, surface.bound(module, args, kwargs))


@torch.compiler.disable
def _untraced(work: Any, *args: Any) -> Any:
    return work(*args)


def _tokens(args: tuple, kwargs: dict) -> int:
    """Tokens of a forward, by what it was given."""
    given = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "hidden_states")]
    return next((each.shape[1] for each in (*given, *args) if isinstance(each, torch.Tensor)), 0)


def handle_of(model: Any) -> PruneHandle | None:
    """The handle of a pruned model, also of a copy or a loaded one; None for a model that is not pruned."""
    try:
        inner = unwrapped(model)
        return getattr(family_of(inner).decoder(inner), ATTACHED, None)
    except (TypeError, ValueError):
        return None


def prune(model: nn.Module, config: DartConfig | None = None) -> PruneHandle:
    """Drop visual tokens in every prefill of `model` from now on (arXiv 2502.11494, section 3, or another strategy).

    model: a transformers model that takes images as placeholder tokens, or a LLaVA of `llava/`; also inside peft's,
        torch.compile's or a parallel wrapper.
    config: the settings; by default `DartConfig()`, DART with a budget of 128 tokens from layer 2 on.

    Returns the handle. `handle.remove()`, or the end of `with dart.prune(...) as handle:`, takes the pruning off again;
    `handle.last` reports what the last prefill kept. Weights, dtypes and devices stay as they are: nothing changes but
    what the decoder layers from `config.layer` on are given. The logits of a pruned prefill, [B, S', V], have one row
    for each token that is left, text included; its loss is taken over these rows.
    Raises TypeError for an unknown model or config, and ValueError when the model cannot be pruned like this, or is
    pruned already.
    """
    if config is not None and not isinstance(config, DartConfig):
        raise TypeError(f"config must be a dart.DartConfig, got {type(config).__name__}")
    return PruneHandle(model, DartConfig() if config is None else config)
