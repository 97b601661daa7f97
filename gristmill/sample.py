"""Sample: rollouts for a person to look at, low, middle and high rewards apart.

Where low ends and high begins is said in the reward's own unit, or else each environment's scale (gristmill/scale.py)
is cut into thirds: environments' rewards have nothing in common. A stratum shows as many tasks as it can
before it shows a second rollout of one. The choice follows from the rollouts' identities and the seed alone: the
order of the rows does not matter, and new rollouts displace few of the old.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gristmill import scan
from gristmill.errors import UsageError

Stratum = Literal["low", "middle", "high"]


class Sampled(NamedTuple):
    """A rollout of the sample; `at_table`, `at_file`, `at_row` say where its row lies."""

    rollout_id: str
    at_table: int
    at_file: int
    at_row: int
    reward: float
    stratum: Stratum


def stratified(
    tables: Sequence[Sequence[Path]],
    *,
    low: int,
    middle: int,
    high: int,
    seed: int,
    edges: tuple[float, float] | None = None,
) -> list[Sampled]:
    """At most `low`, `middle` and `high` usable rollouts of each stratum, low ones first, in seeded order.

    Args:
        tables: the Parquet files of each table, in row order.
        edges: a reward under the first is low, one from the second on is high. By default, thirds of the
            environment's scale: rewards within 0 to 1 are cut at a third and two thirds, so that binary ones have
            no middle; others where the range that occurs has its thirds, and all are middle if they are equal.

    Equal rows (one rollout that stands in two files) are shown once.

    Raises:
        UsageError: a size is negative, or the edges are not in order.
    """
    sizes: dict[Stratum, int] = {"low": low, "middle": middle, "high": high}
    if min(sizes.values()) < 0:
        raise UsageError(f"sizes of a sample are 0 or more, found {low}, {middle}, {high}")
    if edges is None:
        cuts = "low + (high - low) / 3, high - (high - low) / 3"
    elif edges[0] <= edges[1]:
        cuts = f"{float(edges[0])!r}::DOUBLE, {float(edges[1])!r}::DOUBLE"
    else:
        raise UsageError(f"edges of a sample rise, found {edges[0]} and {edges[1]}")
    first_cut, second_cut = cuts.split(", ")
    limits = " OR ".join(f"(stratum = {number} AND place <= {size})" for number, size in enumerate(sizes.values()))
    names = list(sizes)
    # `low < high` keeps an environment of one reward in the middle
    by_range = "low < high AND " if edges is None else ""
    with scan.connect(tables) as db:
        rows = db.execute(
            f"""
            WITH placed AS (
                SELECT {scan.POSITION}, rollout_id, reward, coalesce(task_key, rollout_id) AS task,
                    CASE WHEN {by_range}reward < {first_cut} THEN 0
                         WHEN {by_range}reward >= {second_cut} THEN 2 ELSE 1 END AS stratum,
                    md5('{int(seed)}:' || rollout_id) AS draw
                FROM rollouts JOIN scales USING (environment)
                QUALIFY row_number() OVER (PARTITION BY rollout_id ORDER BY {scan.POSITION}) = 1
            ), turned AS (
                SELECT *, row_number() OVER (PARTITION BY stratum, task ORDER BY draw) AS repeat FROM placed
            ), ordered AS (
                SELECT *, row_number() OVER (PARTITION BY stratum ORDER BY repeat, draw) AS place FROM turned
            )
            SELECT rollout_id, {scan.POSITION}, reward, stratum FROM ordered WHERE {limits} ORDER BY stratum, place
            """
        ).fetchall()
    return [Sampled._make((*row[:-1], names[row[-1]])) for row in rows]
