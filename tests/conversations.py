"""Handwritten examples of every kind that a target may meet, and a way to export them.

The two tools have different arguments on purpose, some arguments are null or nested, and texts hold what templates and
formats trip over: quotes, newlines, tags, other scripts. Each text that must carry loss holds the word `LEARN`, each
that must not holds `CONTEXT`, so that a test can read off a loss mask what was learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gristmill.chat import Unrepresentable
from gristmill.example import Example, Labelled, Method, Preference, RlTask, Sft, Tokens
from gristmill.targets import Export, Launch, Target

Message = dict[str, Any]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'CONTEXT: the weather of a city, as "text".',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "CONTEXT: books a table.",
        "parameters": {
            "type": "object",
            "properties": {"table": {"type": "object"}, "people": {"type": "integer"}, "note": {"type": "string"}},
        },
    },
}


def system(text: str) -> Message:
    return {"role": "system", "content": f"CONTEXT {text}"}


def user(text: str) -> Message:
    return {"role": "user", "content": f"CONTEXT {text}"}


def said(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def calls(*wanted: tuple[str, dict[str, Any]], text: str = "", **more: Any) -> Message:
    made = [
        {"id": f"call_{number}_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(wanted)
    ]
    return {"role": "assistant", "content": text, **more, "tool_calls": made}


def result(call: Message, text: str, number: int = 0) -> Message:
    made = call["tool_calls"][number]
    return {
        "role": "tool",
        "tool_call_id": made["id"],
        "name": made["function"]["name"],
        "content": f"CONTEXT {text}",
    }


def meta(number: int) -> dict[str, Any]:
    return {"rollout_id": f"r{number}", "task_key": f"t{number}", "reward": 1.0, "quality": 1.0, "task_type": "demo"}


PARIS = calls(("get_weather", {"city": "LEARN Zürich 日本 \"q\" \\ 'x'"}))
BOOKED = calls(
    ("book", {"table": {"row": 3, "seat": None}, "people": 2, "note": "LEARN line\nbreak"}), text="LEARN I book."
)
TWO = calls(("get_weather", {"city": "LEARN Oslo"}), ("get_weather", {"city": "LEARN Rome"}))

PLAIN = Sft([user("2 + 2?")], [said("LEARN four")], [], meta(0))
WITH_TOOLS = Sft(
    [system("Be brief."), user("Weather?")],
    [PARIS, result(PARIS, "22°C, cloudy <b>"), said("LEARN It is 22 °C.")],
    [WEATHER],
    meta(1),
)
TEXT_AND_CALL = Sft(
    [user("A table, please.")],
    [
        BOOKED,
        result(BOOKED, '{"ok": true}'),
        said("LEARN Booked, it's done.\n\nBye"),
        user("Thanks!"),
        said("LEARN Welcome"),
    ],
    [WEATHER, BOOK],
    meta(2),
)
REASONING = Sft(
    [user("Think.")],
    [said("LEARN yes", reasoning_content="LEARN because")],
    [],
    meta(3),
)
PARALLEL = Sft(
    [user("Both?")],
    [TWO, result(TWO, "3°C in the north"), result(TWO, "25°C in the south", 1), said("LEARN Rome is warmer.")],
    [WEATHER],
    meta(4),
)
ANSWERED_BEFORE = Sft(
    [user("Hello"), said("CONTEXT hi, an earlier answer"), user("2 + 3?")],
    [said("LEARN five")],
    [],
    meta(5),
)
IMAGE = Sft(
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png"}}]}],
    [said("LEARN a cat")],
    [],
    meta(6),
)
SFT: list[Example] = [PLAIN, WITH_TOOLS, TEXT_AND_CALL, REASONING, PARALLEL, ANSWERED_BEFORE, IMAGE]
TOKENS: list[Example] = [
    Tokens([1, 5, 6, 7, 2], [-100, -100, 6, 7, 2], meta(7)),
    Tokens([1, 8, 2], [-100, 8, 2], meta(8)),
]


def pair(prompt: list[Message], chosen: list[Message], rejected: list[Message], tools: list[Any], n: int) -> Preference:
    sides = {
        side: {"rollout_id": f"r{n}{side[0]}", "reward": reward, "quality": reward}
        for side, reward in (("chosen", 1.0), ("rejected", 0.25))
    }
    return Preference(prompt, chosen, rejected, tools, 0.75, {"task_key": f"t{n}", "task_type": "demo", **sides})


PAIRS: list[Preference] = [
    pair([user("2 + 2?")], [said("LEARN four")], [said("LEARN five")], [], 0),
    pair(
        [system("Be brief."), user("Weather?"), PARIS, result(PARIS, "22°C and cloudy")],
        [said("LEARN 22 °C")],
        [said("LEARN it's 30 °C")],
        [WEATHER],
        1,
    ),
    pair([user("A table.")], [BOOKED], [said("LEARN No.")], [WEATHER, BOOK], 2),
    pair([user("?")], [PARIS, result(PARIS, "22°C"), said("LEARN 22")], [said("LEARN 30")], [WEATHER], 3),
]
LABELLED: list[Example] = [
    Labelled([user("2 + 2?")], [said("LEARN four")], [], True, meta(0)),
    Labelled([user("2 + 2?")], [said("LEARN five")], [], False, meta(1)),
    Labelled([user("A table.")], [BOOKED], [WEATHER, BOOK], True, meta(2)),
    Labelled([user("Weather?"), PARIS, result(PARIS, "22°C")], [said("LEARN 22 °C")], [WEATHER], True, meta(3)),
]
RL: list[Example] = [
    RlTask(
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"question {n}?"}]},
            "agent_ref": {"type": "responses_api_agents", "name": "math_agent"},
            "expected_answer": str(n),
        },
        meta(n),
    )
    for n in range(2)
]
EXAMPLES: dict[Method, Sequence[Example]] = {"sft": SFT, "dpo": PAIRS, "reward": PAIRS, "kto": LABELLED, "rl": RL}
LAUNCH = Launch(model="Qwen/Qwen3-0.6B", epochs=2.0, learning_rate=1e-5, batch_size=8, max_length=4096, seed=7)


def export(
    target: Target,
    method: Method,
    folder: Path,
    examples: Sequence[Example] | None = None,
    launch: Launch = LAUNCH,
    *,
    validation: bool = True,
) -> tuple[Export, list[Example], dict[str, int]]:
    """Write an export: train and validation hold the same rows. Also what it holds, and what it dropped and why."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Example] = []
    rows = []
    dropped: Counter[str] = Counter()
    for example in EXAMPLES[method] if examples is None else examples:
        try:
            rows.append(target.row(example))
            kept.append(example)
        except Unrepresentable as problem:
            dropped[problem.reason] += 1
    names = ["train", "validation"] if validation else ["train"]
    files = [f"{name}.jsonl" if target.suffix == "jsonl" else f"{name}-00000-of-00001.parquet" for name in names]
    for file in files:
        target.write(rows, folder / file)
    made = Export(folder, method, (files[0],), tuple(files[1:]), launch)
    target.finish(made)
    return made, kept, dict(dropped)
