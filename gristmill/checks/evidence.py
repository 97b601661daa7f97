"""Evidence: everything that the checks judge, gathered once, as plain frozen data.

`gather` fills the part that stands in the table's columns, `content` what must be read from the rows themselves,
`contamination` the comparison with evaluation tasks, `remedies` what other settings would have given. A check is a
pure function of an `Evidence` and of the recipe's thresholds, so each can be tried on numbers alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.example import Method as Method
from gristmill.histogram import Histogram

RewardKind = Literal["constant", "binary", "continuous", "unbounded"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Model):
    """How a number is distributed; quantiles are linearly interpolated."""

    count: int
    mean: float
    min: float
    p25: float
    median: float
    p75: float
    p99: float
    max: float


class Conflict(_Model):
    """Two parts of a reward that pull against each other over an environment's rollouts."""

    first: str
    second: str
    correlation: float = Field(description="Spearman's rank correlation.")
    rows: int


class Environment(_Model):
    """The usable rollouts of one environment: an agent, or a file where no agent is named."""

    name: str
    rows: int
    reward: Spread
    bins: Histogram
    kind: RewardKind
    solved_at: float = Field(description="Solved from this reward on: 1 if binary, else the range's middle.")
    solved: int = Field(description="Rollouts at or above it.")
    commonest: float = Field(description="The reward that most rollouts have,")
    commonest_rows: int = Field(description="and how many have it.")
    tasks: int = Field(description="Tasks of known identity.")
    repeated_tasks: int = Field(description="Of these, tasks with at least two rollouts.")
    ungroupable: int = Field(description="Rollouts whose task is not known.")
    signal_tasks: int = Field(description="Repeated tasks whose rewards differ.")
    never: int = Field(description="Repeated tasks that no rollout solved.")
    always: int = Field(description="Repeated tasks that every rollout solved.")
    solve_rates: tuple[int, ...] = Field(
        description="Repeated tasks by solve rate: 0, up to 1/4, 1/2, 3/4, below 1, and 1."
    )
    within_std: float | None = Field(description="Mean over repeated tasks of the rewards' standard deviation.")
    conflicts: tuple[Conflict, ...] = ()


class Pairs(_Model):
    """Best against worst answer of each task, as preference pairs are made."""

    count: int = Field(description="Pairs whose gap is at least the least one.")
    small: int = Field(description="Tasks whose best and worst differ, but by less.")
    gaps: Spread | None = Field(description="The pairs' gaps, each as a share of its environment's reward range.")
    gap_bins: Histogram | None
    near_full: int = Field(description="Pairs whose gap is at least 0.95 of the range.")
    binary: bool = Field(description="Every environment has binary rewards, so every gap is 1.")
    chosen_chars: float | None = Field(description="Median length of chosen answers.")
    rejected_chars: float | None
    longer_chosen: int = Field(description="Pairs whose chosen answer is the longer one.")


class Turn(_Model):
    """One rollout table of several, oldest first."""

    rows: int
    mean_reward: float
    distinct: float | None = Field(description="Mean over repeated tasks of distinct answers a rollout.")
    models: dict[str, int]


class Content(_Model):
    """What reading the rows showed. Rows are evenly spread over the chosen ones."""

    rows: int = Field(description="Rows read.")
    of: int = Field(description="Chosen rows in all.")
    problems: dict[str, int] = Field(description="Reason why a row has no chat form to train on → rows.")
    problem_where: tuple[str, ...] = ()
    undeclared: dict[str, int] = Field(description="Tool that was called but not declared → rows.")
    undeclared_rows: int
    tools: int = Field(description="Distinct tool declarations.")
    bad_tools: dict[str, str] = Field(description="Tool → what is wrong with its JSON Schema.")
    calls: int = Field(description="Calls of tools whose schema is valid.")
    bad_calls: int = Field(description="Of these, calls whose arguments the schema does not allow.")
    bad_call_where: tuple[str, ...] = ()
    single_turn: int = Field(description="Rows with one assistant turn.")
    multi_turn: int
    no_user: int = Field(description="Rows without a user message before the first answer.")
    literal_think: int = Field(description="Rows with <think> tags inside an answer's text.")
    drift: dict[str, tuple[int, int]] = Field(
        description="Environment → rows whose answer uses a script that the prompt does not, and rows with text."
    )
    drift_where: tuple[str, ...] = ()
    long_answers: int = Field(description="Answers of at least 20 words, which were compared with each other.")
    near_duplicates: int = Field(description="Of these, answers whose words nearly repeat an earlier one's.")
    near_where: tuple[str, ...] = ()
    rendered: int | None = Field(None, description="Rows put through the chat template; null: no template given.")
    render_errors: int = 0
    render_lost: int = Field(0, description="Rows of which the template leaves out an answer's text or call.")
    render_not_prefix: int = Field(0, description="Rows whose rendered prompt does not begin the rendered whole.")
    render_where: tuple[str, ...] = ()


class Leak(_Model):
    """An evaluation task that training prompts hold."""

    task: str = Field(description="The task's id, for checks.allowed_overlaps.")
    exact: bool
    share: float = Field(description="Share of the task's own words that the training prompt repeats.")
    evaluation: str = Field(description="The matched span, as the evaluation task has it.")
    training: str = Field(description="The matched span, as the training prompt has it.")
    where: str = Field(description="The training row, as file:line.")
    rollouts: int = Field(description="Training rows with that prompt.")


class Contamination(_Model):
    """Training prompts against evaluation tasks."""

    prompts: int = Field(description="Distinct training prompts.")
    tasks: int = Field(description="Distinct evaluation prompts.")
    n: int = Field(description="Words in an n-gram.")
    exact: tuple[Leak, ...]
    overlapping: tuple[Leak, ...]
    allowed: int = Field(description="Leaks on the reviewed list, which are left out.")
    unknown_allowed: tuple[str, ...] = Field((), description="Ids on the list that are no evaluation task's.")


class WhatIf(_Model):
    """How many rows curation would choose if one setting were another."""

    setting: str
    old: float | int | bool | str | None
    new: float | int | bool | str | None
    rows: int


class MoreRollouts(_Model):
    """How many more rows further rollouts of the same tasks would give, from each task's success rate so far."""

    samples: int = Field(description="Rollouts a task now: collect.samples, or the median of what is there.")
    more: int
    rows: float = Field(description="Expected rows chosen then.")


class Evidence(_Model):
    """All of it."""

    method: Method
    rows_read: int
    usable: int
    dropped: dict[str, int] = Field(description="Reason → rows, over all stages.")
    examples: int = Field(description="Training rows (for preferences: pairs).")
    chosen: int = Field(description="Rollouts that curation chose.")
    truncated: int = Field(description="Usable rollouts whose answer is cut.")
    environments: tuple[Environment, ...]
    pairs: Pairs | None = None
    desirable: int = Field(description="Solved and uncut rollouts: what KTO would label as good.")
    undesirable: int
    chosen_tasks: int = Field(description="Tasks with a chosen rollout.")
    largest_task: int = Field(description="Chosen rollouts of the task that has most.")
    answer_chars: Spread | None = Field(description="Lengths of the chosen answers.")
    answer_bins: Histogram | None = None
    token_bins: Histogram | None = None
    long_outliers: int = Field(description="Chosen answers beyond Tukey's far fence (p75 + 3 × interquartile range).")
    tokens: Spread | None = Field(description="Tokens of chosen rows, estimated from characters.")
    max_length: int | None = Field(None, description="Tokens that training keeps of a row.")
    over_length: int = Field(0, description="Chosen rows estimated to be longer.")
    duplicates: int = Field(description="Usable rollouts that say what another of their task said.")
    commonest_answer_tasks: int = Field(description="Tasks in which the commonest chosen answer occurs.")
    turns: tuple[Turn, ...] = ()
    chosen_models: dict[str, int] = {}
    content: Content | None = None
    contamination: Contamination | None = None
    what_if: tuple[WhatIf, ...] = ()
    more_rollouts: MoreRollouts | None = None
    tasks: int = Field(0, description="Tasks of known identity.")
    samples: int | None = Field(None, description="collect.samples of the recipe, where one is known.")
