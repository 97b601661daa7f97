"""Tool schemas as text in the system message, for frameworks that never give `tools` to the chat template.

The text is that of Qwen's own chat templates (2.5 and 3: the Hermes form), which many others follow; for those
models the rendered prompt is the same to the byte as if the template had been given the tools. A test holds it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import orjson

_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def fold_tools(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the tools described in their first system message, which is made if there is none."""
    if not tools:
        return messages
    text = _described(orjson.dumps(tools))
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


@lru_cache(maxsize=64)  # rollouts of an environment share their tools
def _described(tools: bytes) -> str:
    return _BEFORE + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in orjson.loads(tools)) + _AFTER
