"""The tables of verified targets: `python docs/targets_table.py` puts the long one into docs/targets.md, and the short
one, a row for each target, into README.md.

Its input is docs/targets.json, which a run of the live tests writes:
`GRISTMILL_RECORD=write pytest -m live tests/live/test_frameworks.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- targets: made by docs/targets_table.py -->", "<!-- end of targets -->"
PROOFS = {
    "loader": "its own loader",
    "mirror": "its asserts and rendering, repeated",
    "same rows as trl": "same bytes as the target trl",
    "request model": "its request model",
}


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row for each target and method."""
    lines = ["| target | method | verified with | proof | chat templates | date |", "|---|---|---|---|---|---|"]
    for entry in entries:
        templates = ", ".join(f"`{name}`" for name in entry["templates"]) or "–"
        cells = [f"`{entry['target']}`", f"`{entry['method']}`", entry["framework"], PROOFS[entry["proof"]], templates]
        lines.append(f"| {' | '.join([*cells, entry['date']])} |")
    return "\n".join(lines)


def short(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row for each target, a column for each method, a mark where it was verified."""
    methods = ["sft", "dpo", "kto", "reward", "rl"]
    lines = [f"| target | {' | '.join(methods)} | verified with |", f"|---{'|---' * len(methods)}|---|"]
    for target in dict.fromkeys(entry["target"] for entry in entries):
        mine = {entry["method"]: entry for entry in entries if entry["target"] == target}
        marks = ["✓" if method in mine else "" for method in methods]
        first = next(iter(mine.values()))
        lines.append(f"| `{target}` | {' | '.join(marks)} | {first['framework']}: {PROOFS[first['proof']]} |")
    return "\n".join(lines)


def main() -> None:
    entries = json.loads((HERE / "targets.json").read_text(encoding="utf-8"))
    for page, made in ((HERE / "targets.md", table(entries)), (HERE.parent / "README.md", short(entries))):
        text = page.read_text(encoding="utf-8")
        if BEGIN in text:
            before, _, rest = text.partition(BEGIN)
            page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
