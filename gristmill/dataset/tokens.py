"""Exact token counts, and what a chat template makes of a conversation: what is trained on, and what it loses.

A tokenizer is a folder, or an embedded model's name. Conversations are rendered by its own chat template and tokenised
without further special tokens, as trainers do. Needs `transformers` (the extra `train`); neither network nor weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.cache import default_cache
from gristmill.errors import UsageError
from gristmill.example import Example, Labelled, Message, Preference, Sft, Tokens
from gristmill.identity import digest, file_digest
from gristmill.items import Unrepresentable
from gristmill.reasons import DropReason

# A template is a program: it raises its own errors, and whatever Python's operators raise on what it did not expect.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, IndexError)

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class Trap(NamedTuple):
    """Something that a chat template does to data without a word."""

    id: str
    message: str


class Piece(NamedTuple):
    """A run of rendered text, and whether it carries loss."""

    text: str
    trained: bool


@cache
def counting(name: str) -> Counting:
    """The tokenizer of that name, once a process.

    Raises:
        UsageError: there is none, it has no chat template, or transformers is not installed.
    """
    return Counting(load_tokenizer(name))


def load_tokenizer(name: str) -> Any:
    """A folder's tokenizer, or an embedded model's.

    Raises:
        UsageError: as `counting`.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"tokenizer {name!r}: transformers is not installed; install the extra gristmill[train]"
        ) from None
    folder = _folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    if not tokenizer.chat_template:
        raise UsageError(f"tokenizer {name!r} has no chat template; put a chat_template.jinja into its folder")
    return tokenizer


def tokenizer_identity(name: str) -> str:
    """What a tokenizer is, by the content of its files.

    Raises:
        UsageError: there is none of that name.
    """
    folder = _folder(name)
    return digest({path.name: file_digest(path) for path in folder.iterdir() if path.name in _FILES})


def _folder(name: str) -> Path:
    from gristmill import smollm

    if name == smollm.NAME:
        return smollm.materialise(default_cache())
    if name == smollm.NAME_TINY:
        return smollm.tiny(default_cache() / f"{smollm.NAME_TINY}-{smollm.CONVERTER}")
    folder = Path(name).expanduser()
    if not any((folder / file).is_file() for file in _FILES):
        raise UsageError(
            f"tokenizer {name!r} is neither {smollm.NAME} nor {smollm.NAME_TINY} nor a folder with a tokenizer.json"
        )
    return folder


class Counting:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], **more: Any) -> str:
        """The conversation as text.

        Raises:
            Unrepresentable: TEMPLATE_REFUSED.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, tokenize=False, **more)
            )
        except (TemplateError, *_REFUSALS) as error:
            raise Unrepresentable(DropReason.TEMPLATE_REFUSED, str(error)) from None

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def count(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        """Tokens of a whole conversation."""
        return len(self.ids(self.render(messages, tools)))

    def size(self, example: Example) -> int:
        """Tokens of an example; of a preference, those of its longer side with the prompt."""
        match example:
            case Sft(prompt, completion, tools) | Labelled(prompt, completion, tools):
                return self.count([*prompt, *completion], tools)
            case Preference(prompt, chosen, rejected, tools):
                return max(self.count([*prompt, *side], tools) for side in (chosen, rejected))
            case Tokens(input_ids):
                return len(input_ids)
        raise TypeError(f"{type(example).__name__} has no tokens of its own")

    def cut(self, example: Sft, most: int) -> tuple[Sft, int] | None:
        """The longest beginning of the completion that ends with an assistant message and fits, and its tokens."""
        ends = [at + 1 for at, message in enumerate(example.completion) if message["role"] == "assistant"]
        best: tuple[Sft, int] | None = None
        low, high = 0, len(ends)
        while low < high:  # tokens grow with turns
            middle = (low + high) // 2
            shorter = Sft(example.prompt, example.completion[: ends[middle]], example.tools, example.meta)
            size = self.size(shorter)
            if size <= most:
                best, low = (shorter, size), middle + 1
            else:
                high = middle
        return best

    def pieces(self, example: Example) -> list[tuple[str, list[Piece]]]:
        """The example as its trainer sees it: for each conversation in it, a name and what carries loss.

        SFT learns the assistant's turns of the completion, the preference methods all of a side.
        """
        match example:
            case Tokens(input_ids, labels):
                runs = groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != -100)
                made = [Piece(self.tokenizer.decode([one for one, _ in run]), trained) for trained, run in runs]
                return [("tokens", made)]
            case Sft(prompt, completion, tools):
                return [("conversation", list(self._turns(prompt, completion, tools)))]
            case Labelled(prompt, completion, tools, label):
                return [("desirable" if label else "undesirable", self._side(prompt, completion, tools))]
            case Preference(prompt, chosen, rejected, tools):
                return [
                    ("chosen", self._side(prompt, chosen, tools)),
                    ("rejected", self._side(prompt, rejected, tools)),
                ]
        return []

    def _side(self, prompt: list[Message], side: list[Message], tools: list[dict[str, Any]]) -> list[Piece]:
        whole = self.render([*prompt, *side], tools)
        start = _shared(self.render(prompt, tools, add_generation_prompt=True), whole)
        return [Piece(whole[:start], False), Piece(whole[start:], True)]

    def _turns(self, prompt: list[Message], completion: list[Message], tools: list[dict[str, Any]]) -> Iterator[Piece]:
        """By what each turn adds to the rendering of those before it."""
        messages = [*prompt, *completion]
        whole = self.render(messages, tools)
        done = 0
        for at in range(len(prompt), len(messages)):
            if messages[at]["role"] != "assistant":
                continue
            start = _shared(self.render(messages[:at], tools, add_generation_prompt=True), whole)
            stop = _shared(self.render(messages[: at + 1], tools).rstrip("\n"), whole)
            if done <= start < stop:
                yield Piece(whole[done:start], False)
                yield Piece(whole[start:stop], True)
                done = stop
        yield Piece(whole[done:], False)

    def traps(self) -> list[Trap]:
        """What the template does to a conversation that has everything."""
        return list(self._traps())

    def _traps(self) -> Iterator[Trap]:
        system, user = {"role": "system", "content": "PROBE-SYSTEM"}, {"role": "user", "content": "PROBE-USER"}
        answer = {"role": "assistant", "content": "PROBE-ANSWER"}
        call = {"name": "probe_tool", "arguments": {"place": "PROBE-ARGUMENT"}}
        calling = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        }
        result = {"role": "tool", "tool_call_id": "c1", "name": "probe_tool", "content": "PROBE-RESULT"}
        tools = [{"type": "function", "function": {"name": "probe_tool", "description": "PROBE-SCHEMA"}}]
        tools[0]["function"]["parameters"] = {"type": "object", "properties": {"place": {"type": "string"}}}  # type: ignore[index]
        for role, name, first in (
            ("system", "system", system),
            ("developer", "developer", {**system, "role": "developer"}),
        ):
            text = self._try([first, user, answer])
            if text is None:
                yield Trap(f"{name}_refused", f"the template refuses the role {role}")
            elif "PROBE-SYSTEM" not in text:
                yield Trap(f"{name}_dropped", f"the template drops messages of the role {role}")
        thinking = self._try([user, {**answer, "reasoning_content": "PROBE-THOUGHT"}])
        if thinking is None or "PROBE-THOUGHT" not in thinking:
            yield Trap(
                "reasoning_dropped",
                "the template drops `reasoning_content`; format.reasoning: inline_think keeps it in the text",
            )
        text = self._try([user, calling, result, answer], tools)
        if text is None:
            yield Trap("tools_refused", "the template refuses tool calls or their results")
        else:
            if "PROBE-SCHEMA" not in text:
                yield Trap("tools_not_rendered", "the template does not show which tools there are")
            if "PROBE-ARGUMENT" not in text:
                yield Trap("calls_not_rendered", "the template drops tool calls: nothing of them is learned")
            elif '\\"place\\"' in text:
                yield Trap("arguments_double_encoded", "the template encodes a call's arguments twice")
            if "PROBE-RESULT" not in text:
                yield Trap("results_not_rendered", "the template drops tool results")
            start = self._try([user, calling], tools)
            if start is not None and not text.startswith(start.rstrip("\n")):
                yield Trap(
                    "not_prefix_preserving",
                    "a turn is rendered otherwise once more turns follow; NeMo RL, verl and OpenRLHF need it the same",
                )
        null = self._try([user, {**calling, "content": None}, result, answer], tools)
        if text is not None and (null is None or "None" in null):
            yield Trap("content_null", "the template cannot take null content; no row here has any")
        if "generation" not in _generation_markers(self.tokenizer):
            yield Trap(
                "generation_markers_missing",
                "the template does not mark the assistant's turns (`{% generation %}`), so that `assistant_only_loss` "
                "needs a training template",
            )

    def _try(self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()) -> str | None:
        try:
            return self.render(messages, tools)
        except Unrepresentable:
            return None


def _generation_markers(tokenizer: Any) -> str:
    from gristmill.trl.template import training_template

    template = tokenizer.chat_template
    text = template if isinstance(template, str) else str(template.get("default", ""))
    text = training_template(text)
    return "generation" if "{% generation" in text or "{%- generation" in text else ""


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
