"""`llava_dart`: original LLaVA checkpoints through this repository's `llava` (lmms-eval's own class needs LLaVA's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.utils import Collator
from PIL import Image
from tqdm import tqdm

from dart.utils import UserError
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.eval.engine.prompts import Batch, collate, encode, user_turn
from llava.model.builder import load_pretrained_model
from lmms_eval_dart.models.base import Pruned, cut

# What a task's generation_kwargs leave open, as lmms-eval's own llava.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 1024, "temperature": 0, "top_p": None, "num_beams": 1}


class Llava(lmms):
    """LLaVA-1.5 and LLaVA-NeXT, unpruned. Batches of prompts with any number of images.

    conv_template: the conversation template; system_prompt: instead of the template's own. dtype None: float16 on
    CUDA, float32 on the CPU. Of several processes each holds the model on its own GPU.
    """

    def __init__(
        self,
        pretrained: str = "liuhaotian/llava-v1.5-7b",
        model_base: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int = 1,
        attn_implementation: str | None = None,
        use_flash_attention_2: bool = False,
        dtype: str | None = None,
        conv_template: str = "vicuna_v1",
        system_prompt: str | None = None,
        use_cache: bool = True,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and torch.cuda.is_available():
            device = device_map = f"cuda:{self.accelerator.local_process_index}"
        if use_flash_attention_2:
            attn_implementation = "flash_attention_2"
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            pretrained,
            model_base,
            None,
            device=device,
            device_map=device_map or "auto",
            attn_implementation=attn_implementation,
            torch_dtype=dtype,
        )
        self.template = get_template(conv_template)
        if system_prompt is not None:
            self.template.system = system_prompt
        self.batch_size, self.use_cache = int(batch_size), use_cache

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered, as in lmms-eval's Qwen classes."""
        raise UserError("llava_dart answers generate_until tasks only, not loglikelihood ones")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Not offered."""
        raise UserError("llava_dart answers generate_until tasks only, not generate_until_multi_round ones")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests."""
        # Requests with equal generation_kwargs go together, long ones first; Collator undoes the order.
        ordered = Collator([each.arguments for each in requests], lambda x: (-len(x[0]), x[0]), grouping=True)
        answers: list[str] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for chunk in ordered.get_batched(n=self.batch_size):
                for (context, kwargs, *_), text in zip(chunk, self._answer(chunk), strict=True):
                    answers.append(text)
                    self.cache_hook.add_partial("generate_until", (context, kwargs), text)
                    bar.update(1)
        return ordered.get_original(answers)

    def _answer(self, chunk: Sequence[tuple]) -> list[str]:
        rows = []
        for context, _, doc_to_visual, doc_id, task, split in chunk:
            pictures = doc_to_visual(self.task_dict[task][split][doc_id]) or []
            if not all(isinstance(each, Image.Image) for each in pictures):
                raise UserError(f"task {task} shows videos, which LLaVA cannot see")
            rows.append(
                encode(
                    self.prompt(context, len(pictures)),
                    pictures,
                    self.tokenizer,
                    self.image_processor,
                    self.model.config,
                )
            )
        kwargs = DEFAULTS | chunk[0][1]
        until = kwargs.pop("until", None)
        return [cut(text, until).strip() for text in self._generate(collate(rows), kwargs)]

    def prompt(self, context: str, pictures: int) -> str:
        """The whole prompt; the images come first unless the question says where each of them is."""
        if context.count(DEFAULT_IMAGE_TOKEN) != pictures:
            context = user_turn(context.replace(DEFAULT_IMAGE_TOKEN, "").strip(), pictures, self.model.config)
        conversation = self.template.copy()
        conversation.append_message(conversation.roles[0], context)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def _generate(self, batch: Batch, kwargs: dict[str, Any]) -> list[str]:
        sampling = {"do_sample": False}
        if kwargs["temperature"] > 0:
            sampling = {"do_sample": True, "temperature": kwargs["temperature"], "top_p": kwargs["top_p"]}
        out = self.model.generate(
            **batch.inputs(self.model),
            num_beams=kwargs["num_beams"],
            max_new_tokens=kwargs["max_new_tokens"],
            use_cache=self.use_cache,
            **sampling,
        )
        return self.tokenizer.batch_decode(out, skip_special_tokens=True)


class LlavaDart(Pruned, Llava):
    """`Llava` with DART; `retain_token_num_for_llava_next`, where given, is the budget of LLaVA-NeXT checkpoints."""
