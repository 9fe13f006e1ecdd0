"""Conversation templates: the exact prompt strings that LLaVA checkpoints were trained with."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from enum import Enum, auto


class SeparatorStyle(Enum):
    """How system text, roles and messages are joined."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass
class Conversation:
    """One conversation. messages: [role, text or None] pairs; None leaves the turn open for the model.

    sep ends the user's turns (with TWO and PLAIN) or all turns; sep2 ends the assistant's.
    """

    system: str
    roles: tuple[str, str]
    sep_style: SeparatorStyle
    sep: str
    sep2: str = ""
    version: str = ""
    messages: list[list[str | None]] = field(default_factory=list)

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent copy."""
        return copy.deepcopy(self)

    def get_prompt(self) -> str:
        """The conversation as one string."""
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2()
        if self.sep_style is SeparatorStyle.PLAIN:
            return self.system + "".join(text + self._end(i) for i, (_, text) in enumerate(self.messages) if text)
        colon = "" if self.sep_style is SeparatorStyle.MPT else ":"
        space = " " if colon else ""
        prompt = self.system + self.sep
        for i, (role, text) in enumerate(self.messages):
            prompt += f"{role}{colon}{space}{text}{self._end(i)}" if text else f"{role}{colon}"
        return prompt

    def _end(self, turn: int) -> str:
        alternates = self.sep_style in (SeparatorStyle.TWO, SeparatorStyle.PLAIN)
        return self.sep2 if alternates and turn % 2 else self.sep

    def _llama_2(self) -> str:
        prompt = ""
        for i, (_, text) in enumerate(self.messages):
            if not text:
                continue
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            # The tokenizer adds the first turn's <s> itself.
            start = self.sep if i else ""
            prompt += f" {text} {self.sep2}" if i % 2 else f"{start}[INST] {text} [/INST]"
        return prompt


def _chat_between(who: str, *more: str) -> str:
    chat = f"A chat between a curious {who} and an artificial intelligence assistant."
    polite = f"The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
    return " ".join((chat, *(more or (polite,))))


_VISUAL = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MMTAG = (
    f"The assistant is {_VISUAL}",
    "The visual content will be provided with the following format: <Image>visual content</Image>.",
)
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_IM_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_IM_SYSTEM = "<|im_start|>system\n"
_MPT_SYSTEM = (
    f"{_IM_SYSTEM}A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
_TWO = Conversation(_chat_between("user"), ("USER", "ASSISTANT"), SeparatorStyle.TWO, " ", "</s>", "v1")
_V0 = Conversation(_chat_between("human"), ("Human", "Assistant"), SeparatorStyle.SINGLE, "###", version="v0")
_MPT = Conversation(_MPT_SYSTEM, _IM_ROLES, SeparatorStyle.MPT, "<|im_end|>", version="mpt")
_LLAMA_2 = Conversation(_LLAMA_2_SYSTEM, ("USER", "ASSISTANT"), SeparatorStyle.LLAMA_2, "<s>", "</s>", "llama_v2")
_PLAIN = Conversation("", ("", ""), SeparatorStyle.PLAIN, "\n", version="plain")
_LLAVA_LLAMA_2 = replace(_LLAMA_2, system=f"You are a helpful language and vision assistant. You are {_VISUAL}")
_MISTRAL = replace(_LLAMA_2, system="", sep="")
_MMTAG_V1 = replace(_TWO, system=_chat_between("user", *_MMTAG), version="v1_mmtag")
_MMTAG_V0 = replace(_V0, system=_chat_between("user", *_MMTAG), version="v0_mmtag")
_LLAMA_3 = Conversation(
    f"<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are {_VISUAL}",
    ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    SeparatorStyle.MPT,
    "<|eot_id|>",
    version="llama_v3",
)
_QWEN = Conversation(
    f"{_IM_SYSTEM}You are a helpful assistant.", _IM_ROLES, SeparatorStyle.MPT, "<|im_end|>\n", version="qwen"
)

conv_templates: dict[str, Conversation] = {
    "vicuna_v1": _TWO,
    "v1": _TWO,
    "llava_v1": replace(_TWO, system=_chat_between("human")),
    "v1_mmtag": _MMTAG_V1,
    "llava_v0": _V0,
    "v0_mmtag": _MMTAG_V0,
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
    "llava_plain": _PLAIN,
    "llama_2": _LLAMA_2,
    "llava_llama_2": _LLAVA_LLAMA_2,
    "mistral_instruct": _MISTRAL,
    "llava_llama_3": _LLAMA_3,
    "qwen_1_5": _QWEN,
    "mpt": _MPT,
    "mpt_text": _MPT,
    "chatml_direct": replace(_MPT, system=f"{_IM_SYSTEM}Answer the questions."),
}
default_conversation = conv_templates["vicuna_v1"]


def get_template(name: str) -> Conversation:
    """A fresh conversation from the template `name`. Raises ValueError listing the templates."""
    if name not in conv_templates:
        raise ValueError(
            f"unknown conversation template {name!r} (--conv-mode); known: {', '.join(sorted(conv_templates))}"
        )
    return conv_templates[name].copy()
