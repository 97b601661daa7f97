"""Our conversion against NeMo Gym's own `ResponsesConverter` (0.4.0, in its own Python 3.12 environment).

The same items go through both, whole conversations of ../shared and generated ones, and must give equal messages and
tools once the intended differences, and these alone, are taken out of Gym's (`as_ours`):

1. arguments of calls are objects, not text;
2. content is "" and never null, and a message without calls has no `tool_calls`;
3. a tool message carries the name of its tool;
4. parts that are all text are joined to one text;
5. a leading run of system messages is one message (Gym leaves `instructions` out: the comparison does too);
6. a refusal is text (Gym's has none, and the turn vanishes): given to Gym as text;
7. tools have no null keys (Gym refuses a null description).

Not compared, since ours refuses them: what tests/test_chat.py lists as dropped. Reasoning is compared as
`<think>…</think>` in the text and the developer role as kept, which is how Gym has them.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gristmill.chat import Unrepresentable, convert
from tests.kept import kept

pytestmark = pytest.mark.live

VERSION = "0.4.0"
ROLLOUTS = Path(__file__).parents[2] / "shared" / "rollouts"

DRIVER = """
import json, sys
from nemo_gym.openai_utils import NeMoGymResponseCreateParamsNonStreaming as Params
from nemo_gym.responses_converter import ResponsesConverter

converter = ResponsesConverter(return_token_id_information=False)
with open(sys.argv[1]) as source, open(sys.argv[2], "w") as target:
    for line in source:
        try:
            chat = converter.responses_to_chat_completion_create_params(Params.model_validate(json.loads(line)))
            answer = chat.model_dump(mode="json", exclude_unset=True)
            answer = {"messages": answer["messages"], "tools": answer.get("tools", [])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        target.write(json.dumps(answer) + "\\n")
"""


def python312() -> str | None:
    """A Python 3.12 that really runs: a version manager's shim may not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which("python3.12"), *map(str, sorted(pyenv.glob("3.12.*/bin/python3.12"), reverse=True))]
    if sys.version_info[:2] == (3, 12):
        found.insert(0, sys.executable)
    script = "import sys; assert sys.version_info[:2] == (3, 12); print(sys.base_prefix)"
    for candidate in filter(None, found):
        asked = subprocess.run([candidate, "-c", script], capture_output=True, text=True)
        if asked.returncode == 0:
            return str(Path(asked.stdout.strip()) / "bin" / "python3.12")
    return None


@pytest.fixture(scope="module")
def gym_python() -> Path:
    """The interpreter of an environment with NeMo Gym, made once and kept in the cache."""
    cache = kept()
    home = cache / f"nemo-gym-{VERSION}"
    python = home / "bin" / "python"
    probe = f"import importlib.metadata as m; assert m.version('nemo-gym') == '{VERSION}'; import nemo_gym"
    if not (python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0):
        uv, base = shutil.which("uv"), python312()
        if uv is None or base is None:
            pytest.skip("needs uv and a Python 3.12 that runs")
        environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
        cache.mkdir(parents=True, exist_ok=True)
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", base, str(home)],
            [uv, "pip", "install", "--quiet", "--python", str(python), f"nemo-gym=={VERSION}"],
        ):
            made = subprocess.run(command, env=environment, capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"nemo-gym {VERSION} cannot be installed: {made.stderr.strip()[-300:]}")
    return python


def ask_gym(python: Path, folder: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    source, target, driver = folder / "requests.jsonl", folder / "answers.jsonl", folder / "driver.py"
    source.write_bytes(b"".join(orjson.dumps(request) + b"\n" for request in requests))
    driver.write_text(DRIVER)
    subprocess.run([python, driver, source, target], check=True, capture_output=True, timeout=300)
    answers = [orjson.loads(line) for line in target.read_bytes().splitlines()]
    assert len(answers) == len(requests)
    return answers


def request_of(row: dict[str, Any]) -> dict[str, Any]:
    """What Gym is asked to convert: the whole conversation as an input (difference 6 is made here)."""
    params, output = row["responses_create_params"], row["response"]["output"]
    if isinstance(output[0], list):
        output = output[-1]
    prompt = params["input"]
    if isinstance(prompt, str):
        prompt = [{"type": "message", "role": "user", "content": prompt}]
    items = copy.deepcopy([*prompt, *output])
    for item in items:
        for part in item["content"] if isinstance(item.get("content"), list) else []:
            if part["type"] == "refusal":
                part.update(type="output_text", text=part.pop("refusal"), annotations=[])
    return {"input": items, "tools": params.get("tools") or row["response"].get("tools") or []}


def as_ours(answer: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for message in answer["messages"]:
        message = dict(message)
        content = message["content"]
        if content is None:
            message["content"] = ""
        elif isinstance(content, list) and all(part["type"] == "text" for part in content):
            message["content"] = "".join(part["text"] for part in content)
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = orjson.loads(call["function"]["arguments"])
        role = message["role"]
        if role in ("system", "developer") and len(messages) == 1 and messages[0]["role"] == role:
            messages[0]["content"] += "\n\n" + message["content"]
        else:
            messages.append(message)
    tools = [
        {"type": "function", "function": {key: value for key, value in tool["function"].items() if value is not None}}
        for tool in answer["tools"]
    ]
    return {"messages": messages, "tools": tools}


def ours(row: dict[str, Any]) -> dict[str, Any] | None:
    plain = row | {"responses_create_params": row["responses_create_params"] | {"instructions": None}}
    try:
        conversation = convert(plain, reasoning="inline_think", developer="keep")
    except Unrepresentable:
        return None
    messages = [
        {key: value for key, value in message.items() if message["role"] != "tool" or key != "name"}
        for message in conversation.messages
    ]
    return {"messages": messages, "tools": conversation.tools}


def compare(python: Path, folder: Path, rows: list[dict[str, Any]]) -> int:
    """How many rows both converted, to equal results."""
    kept = [(row, made) for row in rows if (made := ours(row)) is not None]
    answers = ask_gym(python, folder, [request_of(row) for row, _ in kept])
    for (row, made), answer in zip(kept, answers, strict=True):
        assert "error" not in answer, (answer["error"], row)
        assert made == as_ours(answer)
    return len(kept)


@pytest.mark.skipif(not ROLLOUTS.is_dir(), reason="no ../shared/rollouts")
def test_real_rows_convert_as_in_gym(gym_python: Path, tmp_path: Path) -> None:
    rows = []
    for path in sorted(ROLLOUTS.rglob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if row.get("response") and row["response"].get("output"):
                rows.append(row)
    assert compare(gym_python, tmp_path, rows) > 1000


def message(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
input_parts = st.lists(
    st.builds(lambda value: {"type": "input_text", "text": value}, text)
    | st.just({"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"}),
    min_size=1,
    max_size=3,
)
output_parts = st.lists(
    st.builds(lambda value: {"type": "output_text", "text": value, "annotations": []}, text)
    | st.builds(lambda value: {"type": "refusal", "refusal": value}, text),
    max_size=3,
)
contexts = st.builds(message, st.sampled_from(["user", "user", "system", "developer"]), text | input_parts)
answers = st.builds(
    lambda parts: {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": parts},
    output_parts,
)
thoughts = st.builds(
    lambda texts: {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": t} for t in texts]},
    st.lists(text, max_size=2),
)
arguments = st.dictionaries(text, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly well-formed conversations with every kind of item, in orders that agents do and do not write."""
    counter = 0

    def step() -> list[dict[str, Any]]:
        nonlocal counter
        kind = draw(st.sampled_from(["answer", "think", "calls", "calls", "context", "late"]))
        if kind in ("answer", "think"):
            return [draw(answers if kind == "answer" else thoughts)]
        if kind == "context":
            return [draw(contexts)]
        ids = [f"call_{counter + n}" for n in range(draw(st.integers(1, 3)))]
        counter += len(ids)
        calls = [
            {"type": "function_call", "call_id": i, "name": "f", "arguments": orjson.dumps(draw(arguments)).decode()}
            for i in ids
        ]
        results = [{"type": "function_call_output", "call_id": i, "output": draw(text)} for i in ids]
        between = [draw(thoughts)] if kind == "late" else []
        return [*calls, *between, *draw(st.permutations(results))]

    prompt = [message("user", "q"), *draw(st.lists(contexts, max_size=2))]
    if draw(st.booleans()):
        prompt = [message("system", "s"), *prompt]
    if draw(st.booleans()):
        prompt = [*prompt, *step(), *step(), message("user", "next")]
    output = [item for _ in range(draw(st.integers(1, 5))) for item in step()]
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    described = tool | {"name": "g", "description": draw(text)}
    tools = draw(st.sampled_from([[], [tool, described]]))
    return {"responses_create_params": {"input": prompt, "tools": tools}, "response": {"output": output}}


def test_generated_conversations_convert_as_in_gym(gym_python: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []

    # Gym takes seconds to import: collect first, then ask once.
    @settings(
        max_examples=500,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(conversations())
    def collect(row: dict[str, Any]) -> None:
        rows.append(row)

    collect()
    assert compare(gym_python, tmp_path, rows) > 200  # the rest have an ambiguous turn, or an image in a system message
