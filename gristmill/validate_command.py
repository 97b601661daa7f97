"""`gristmill validate FILES… [KEY=VALUE]…`: the checks, over rollout files, without training.

Reads the files into a rollout table in a temporary folder, chooses what the recipe would choose, and checks it; writes
nothing but the page that was asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from gristmill.checks import Report, page, validate
from gristmill.checks.content import template_of
from gristmill.curate import SELECTION, curate
from gristmill.errors import GateError, InputError, UsageError
from gristmill.ingest import ingest
from gristmill.recipe import CurateRecipe, Recipe, build, load
from gristmill.rollout import Unreadable, parse
from gristmill.rollout_files import find_rollout_files
from gristmill.words import many

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


class Arguments(NamedTuple):
    """Files and overrides, which stand together on the command line."""

    files: list[str]
    overrides: list[str]


def split(arguments: Sequence[str]) -> Arguments:
    """What looks like `key=value`, and is no file, is an override."""
    overrides = [one for one in arguments if _OVERRIDE.match(one) and not Path(one).exists()]
    return Arguments([one for one in arguments if one not in overrides], overrides)


def run(
    arguments: Sequence[str],
    *,
    recipe: Path | None = None,
    against: Sequence[Path] = (),
    strict: bool = False,
    json: bool = False,
    html: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Check rollout files and print what was found to standard output.

    Args:
        arguments: files, folders and globs; and overrides of the recipe.
        recipe: a YAML recipe; its `curate`, `format` and `checks` say what is checked.
        against: evaluation tasks (Gym dataset rows, materialized inputs or rollouts, JSONL), to look for leaks.
        strict: warnings are errors.
        json: print one JSON object instead of text.
        html: also write a page.

    Raises:
        GateError: there are errors.
        InputError: a file cannot be read as what it should be.
        RecipeError: the recipe or an override does not validate.
        UsageError: no files, or the page cannot be written.
    """
    files, overrides = split(arguments)
    if not files:
        raise UsageError("no rollout files were given; expected files, folders or globs")
    chosen = load(recipe, overrides) if recipe else build({}, overrides, source="the overrides")
    if strict:
        chosen = chosen.model_copy(update={"checks": chosen.checks.model_copy(update={"strict": True})})
    with Console(stderr=True).status("reading and checking rollouts"):  # drawn in terminals only
        report = check_files(files, chosen, known=recipe is not None, against=against)
    if html is not None:
        try:
            html.write_text(page.render(report), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{html} cannot be written: {error.strerror or error}") from None
    console = console or Console()
    if json:
        console.file.write(report.model_dump_json() + "\n")
    else:
        console.print(page.lines(report))
    if report.errors:
        ids = ", ".join(finding.id for finding in report.errors)
        raise GateError(f"{many(len(report.errors), 'error')} ({ids}): this data is not worth training on as it is")
    return report


def check_files(files: Sequence[str], recipe: Recipe, *, known: bool, against: Sequence[Path] = ()) -> Report:
    """Read, choose, check.

    Args:
        known: the recipe is the user's own, so what it says of collecting and training counts too.
    """
    evaluation = [row for path in against for row in read_rows(path)] if against else None
    with tempfile.TemporaryDirectory(prefix="gristmill-validate-") as name:
        folder = Path(name)
        table = folder / "table"
        table.mkdir()
        result = ingest(find_rollout_files(files), table)
        counted: list[dict[str, Any]] = [
            {
                "rows_read": result.rows_read,
                "rows_kept": result.rows_kept,
                "dropped": {str(reason): count for reason, count in result.dropped.items()},
            }
        ]
        again = folder / "again"
        again.mkdir()

        def choose(changed: CurateRecipe) -> int:
            return int(curate([result.tables], counted, changed, again, seed=recipe.seed)["rows_kept"])

        counts = curate([result.tables], counted, recipe.curate, folder, seed=recipe.seed)
        return validate(
            [result.tables],
            folder / SELECTION,
            counts,
            curate=recipe.curate,
            format=recipe.format,
            checks=recipe.checks,
            choose=choose,
            evaluation=evaluation,
            seed=recipe.seed,
            max_length=recipe.train.max_length if known else None,
            samples=recipe.collect.samples if known else None,
            render=template_of(recipe.format.tokenizer) if recipe.format.tokenizer else None,
        )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Evaluation tasks from a JSONL file.

    Raises:
        InputError: it cannot be read, or a line is no task.
    """
    rows = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                try:
                    row = parse(line)
                except Unreadable as problem:
                    raise InputError(f"{path}:{number}: expected an evaluation task as JSON ({problem})") from None
                if not isinstance(row.get("responses_create_params"), dict):
                    raise InputError(
                        f"{path}:{number}: no `responses_create_params`; expected Gym dataset rows, "
                        "materialized inputs "
                        "or rollouts"
                    )
                rows.append(row)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a JSONL file of evaluation tasks") from None
    return rows
