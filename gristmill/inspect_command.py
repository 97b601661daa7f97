"""`gristmill inspect`: profile rollout files and say it in the terminal, as JSON, or as a page.

Reads the files into a rollout table in a temporary folder, which is gone afterwards; nothing else is written
but the page and the quarantine that were asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gristmill import charts
from gristmill.errors import UsageError
from gristmill.histogram import Histogram
from gristmill.ingest import ingest
from gristmill.profile import Environment, Profile, Spread, profile
from gristmill.rollout_files import FAILURES, find_rollout_files, sidecar
from gristmill.words import many, size

if TYPE_CHECKING:
    from jinja2 import Template

_BAR = 32  # characters of the longest bar
_SHOWN = 12  # metrics, tools, models and environments shown in the terminal; JSON and the page have all
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def inspect(
    files: Sequence[Path | str],
    *,
    json: bool = False,
    html: Path | None = None,
    quarantine: Path | None = None,
    console: Console | None = None,
) -> Profile:
    """Profile rollout files, and print what was found to standard output.

    Args:
        files: files, directories and globs.
        json: print the profile as one JSON object instead of text.
        html: also write a page.
        quarantine: folder that gets the dropped lines, byte for byte, and the reasons.

    Raises:
        InputError: a file is absent, unreadable, binary or damaged, or there is no row at all.
        UsageError: the page or the quarantine cannot be written.
    """
    console = console or Console()
    paths = find_rollout_files(files)
    with tempfile.TemporaryDirectory(prefix="gristmill-inspect-") as folder:
        try:
            result = ingest(paths, Path(folder), quarantine=quarantine, copy=False)
        except OSError as error:
            raise UsageError(f"{error.filename or quarantine} cannot be written: {error.strerror}") from None
        found = profile(result)
    found = found.model_copy(update={"failures_beside": failures_beside(paths)})
    if html is not None:
        try:
            html.write_text(render(found), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{html} cannot be written: {error.strerror or error}") from None
    if json:
        console.file.write(found.model_dump_json() + "\n")
    else:
        for part in _parts(found):
            console.print(part)
    return found


def failures_beside(files: Sequence[Path]) -> int:
    """Lines of the failures sidecars that lie beside rollout files."""
    count = 0
    for file in files:
        failures = sidecar(file, FAILURES)
        if failures.is_file() and failures != file:
            with failures.open("rb") as lines:
                count += sum(bool(line.strip()) for line in lines)
    return count


# ---- in the terminal


def _parts(found: Profile) -> list[RenderableType]:
    parts: list[RenderableType] = [_headline(found)]
    if found.drops:
        parts += [_title("Dropped"), _drops(found)]
    shown = found.environments[:_SHOWN]
    for environment in shown:
        parts += [_title(environment.name), _environment(environment), _histogram(environment.histogram)]
    if len(found.environments) > len(shown):
        parts.append(Text(f"… and {len(found.environments) - len(shown)} more environments (--json has all)"))
    parts += [_title("Lengths"), _spreads(found.lengths)]
    if found.metrics:
        parts += [_title("Metrics"), _spreads(found.metrics)]
    for title, counts in (("Tools called", found.tools), ("Models", found.models)):
        if counts:
            parts += [_title(title), _counts(counts)]
    parts += [_title("Chat form"), _checked(found)]
    return parts


def _title(text: str) -> RenderableType:
    return Padding(_plain(text, "bold"), (1, 0, 0, 0))


def _headline(found: Profile) -> Text:
    text = Text()
    text.append(f"{found.rows_kept:,} of {found.rows_read:,} rows usable", style="bold")
    text.append(f" in {many(found.files, 'file')}, {size(found.bytes)}")
    for count, what in (
        (found.truncated, "answers cut off"),
        (found.duplicate_answers, "answers that repeat another of their task"),
        (found.failures_beside, "failures recorded beside them"),
    ):
        if count:
            text.append(f"\n{count:,} {what}")
    return text


def _drops(found: Profile) -> Table:
    table = _table("reason", "rows", "first at")
    for drop in found.drops:
        table.add_row(drop.reason, f"{drop.count:,}", _plain(f"{drop.source}:{drop.line}"))
    return table


def environment_facts(one: Environment) -> list[tuple[str, str]]:
    """An environment in words: (what, said)."""
    facts = []
    repeats = one.rollouts_per_task
    rows = f"{one.rows:,} rollouts of {many(one.tasks, 'task')}"
    if repeats is not None:
        spread = f"{repeats.min:.0f}" if repeats.min == repeats.max else f"{repeats.min:.0f} to {repeats.max:.0f}"
        rows += f", {spread} each"
    facts.append(("rows", rows + (f"; {one.ungroupable:,} of no known task" if one.ungroupable else "")))
    kind = one.reward_kind + (f", of {', '.join(one.components)}" if one.components else "")
    number = charts.number
    facts.append(
        (
            "reward",
            f"{kind}; mean {number(one.reward.mean)}, {number(one.reward.min)} to {number(one.reward.max)}",
        )
    )
    if one.tasks:
        facts.append(
            (
                f"solved (≥ {number(one.solved_at)})",
                f"never {one.never:,} · sometimes {one.sometimes:,} · always {one.always:,} tasks",
            )
        )
    facts.append(
        (
            "could train",
            f"SFT {one.sft_rows:,} rows · DPO {one.dpo_pairs:,} pairs · "
            f"KTO {one.kto_desirable:,} + {one.kto_undesirable:,} · RL {one.rl_tasks:,} tasks with signal",
        )
    )
    return facts


def _environment(one: Environment) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for what, said in environment_facts(one):
        table.add_row(what, _plain(said))
    return table


def _histogram(bins: Histogram) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    decimals = charts.decimals_for(*bins.edges)
    most = max(bins.counts)
    last = len(bins.counts) - 1
    for i, count in enumerate(bins.counts):
        low, high = (charts.number(edge, decimals) for edge in bins.edges[i : i + 2])
        if count or i in (0, last):
            table.add_row(f"{low} to {high}{']' if i == last else ' '}", _bar(count / most), f"{count:,}")
    return table


def _bar(share: float) -> Text:
    """A bar to an eighth of a character; what is not zero is never drawn as nothing."""
    eighths = max(round(share * _BAR * 8), 1 if share else 0)
    return Text("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip(), style="cyan")


def _spreads(spreads: dict[str, Spread]) -> Table:
    table = _table("", "rows", "mean", "std", "min", "median", "p95", "max")
    for name, one in list(spreads.items())[:_SHOWN]:
        numbers = (one.mean, one.std, one.min, one.median, one.p95, one.max)
        table.add_row(
            _plain(name),
            f"{one.count:,}",
            *("" if value is None else charts.number(value) for value in numbers),
        )
    return _and_more(table, len(spreads))


def _counts(counts: dict[str, int]) -> Table:
    table = _table("", "count")
    for name, count in list(counts.items())[:_SHOWN]:
        table.add_row(_plain(name), f"{count:,}")
    return _and_more(table, len(counts))


def _and_more(table: Table, count: int) -> Table:
    if count > _SHOWN:
        table.add_row(Text(f"… and {count - _SHOWN} more", style="dim"))
    return table


def _checked(found: Profile) -> RenderableType:
    return Text(checked_words(found))


def checked_words(found: Profile) -> str:
    """What the conversion of the sample came to, in words."""
    checked = found.checked
    sample = "" if checked.rows == checked.of else f", a sample of {checked.of:,}"
    text = f"{checked.trainable:,} of {many(checked.rows, 'usable row')}{sample} can be trained on as a chat"
    problems = ", ".join(f"{reason} {count:,}" for reason, count in checked.problems.items())
    return f"{text}; the others: {problems}" if problems else text


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(columns):
        number = i > 0 and name != "first at"
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _plain(text: str, style: str = "") -> Text:
    """Text from the data: no markup, and no control characters, which a terminal would obey."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text), style=style)


# ---- as a page


def render(found: Profile) -> str:
    """The profile as one HTML page that needs nothing else; equal profiles give equal text."""
    histograms = [
        charts.histogram(one.histogram, title=f"Rewards of {one.name}", height=140) for one in found.environments
    ]
    return _template().render(
        found=found,
        headline=_headline(found).plain,
        environments=list(zip(found.environments, histograms, map(environment_facts, found.environments), strict=True)),
        checked=checked_words(found),
        style=charts.STYLE,
        number=charts.number,
    )


def _template() -> Template:
    from jinja2 import Environment as Jinja
    from jinja2 import PackageLoader, StrictUndefined

    jinja = Jinja(loader=PackageLoader("gristmill", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return jinja.get_template("inspect.html.j2")
