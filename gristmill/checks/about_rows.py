"""Checks of the rows that training would see: tasks, repetition, length, shape, tools, text."""

from __future__ import annotations

from gristmill.checks.evidence import Content, Evidence
from gristmill.checks.finding import Remedy
from gristmill.checks.registry import Said, check, percent
from gristmill.example import Method
from gristmill.recipe import ChecksRecipe
from gristmill.words import many

_FEW_ROWS = 20
_OUTLIERS = 0.01  # share of far outliers in length that is worth a word
_SAME_ANSWER_TASKS = 0.25  # share of the tasks that one answer may serve
_MINORITY = 0.5  # where more rows than this change script, the task asks for it (translation)
_GROUPED: frozenset[Method] = frozenset({"dpo", "reward", "rl"})


@check("GM140", "Few tasks", "warning", "Do the rows come from enough different tasks?")
def few_tasks(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if not evidence.chosen or evidence.chosen_tasks >= recipe.min_tasks:
        return None
    return Said(
        f"{many(evidence.chosen, 'chosen rollout')} come from {many(evidence.chosen_tasks, 'task')}, fewer than "
        f"{recipe.min_tasks} (checks.min_tasks): the model would learn these by heart; collect more tasks",
        {"tasks": evidence.chosen_tasks, "rows": evidence.chosen},
    )


@check("GM141", "One task dominates", "warning", "Are rows spread evenly over tasks?")
def unbalanced_tasks(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if evidence.chosen_tasks < 2 or evidence.largest_task <= recipe.max_task_share * evidence.chosen:
        return None
    if evidence.largest_task <= 2 * evidence.chosen / evidence.chosen_tasks:
        return None  # with few tasks each has a large share
    return Said(
        f"one task gives {percent(evidence.largest_task / evidence.chosen)} of the "
        f"{many(evidence.chosen, 'chosen rollout')}"
        f", more than {percent(recipe.max_task_share)} (checks.max_task_share), the average of {evidence.chosen_tasks} "
        f"tasks being {evidence.chosen / evidence.chosen_tasks:.1f}; set or lower curate.per_task",
        {"largest": evidence.largest_task, "rows": evidence.chosen, "tasks": evidence.chosen_tasks},
    )


@check("GM142", "Repeated answers", "note", "How many rollouts say what another of their task said?")
def duplicates(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if not evidence.usable or evidence.duplicates <= recipe.max_duplicates * evidence.usable:
        return None
    return Said(
        f"{evidence.duplicates:,} of {many(evidence.usable, 'usable rollout')} "
        f"({percent(evidence.duplicates / evidence.usable)}) repeat another answer to their task, more than "
        f"{percent(recipe.max_duplicates)} (checks.max_duplicates): each costs a rollout and adds nothing; sample at a "
        "higher collect.temperature, or fewer rollouts of more tasks",
        {"duplicates": evidence.duplicates, "usable": evidence.usable},
    )


@check("GM143", "Near-duplicates", "warning", "How many answers nearly repeat another?")
def near_duplicates(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.long_answers:
        return None
    share = content.near_duplicates / content.long_answers
    if share <= recipe.max_duplicates:
        return None
    return Said(
        f"{content.near_duplicates:,} of {many(content.long_answers, 'answer')} of 20 words or more "
        f"({percent(share)}{_sample(content)}) nearly repeat an earlier one (Jaccard similarity of five-word runs at "
        f"least 0.8), more than {percent(recipe.max_duplicates)} (checks.max_duplicates): the model would see the same "
        "text again and again; set curate.near_duplicates: 0.8",
        {"near_duplicates": content.near_duplicates, "answers": content.long_answers},
        where=content.near_where,
    )


@check("GM144", "One answer for many tasks", "warning", "Is one answer given to many different tasks?")
def one_answer(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    count, tasks = evidence.commonest_answer_tasks, evidence.chosen_tasks
    if tasks < _FEW_ROWS or count <= _SAME_ANSWER_TASKS * tasks:
        return None
    return Said(
        f"the same answer, word for word, was chosen for {count:,} of {tasks:,} tasks ({percent(count / tasks)}): a "
        "verifier that a fixed answer satisfies is being gamed, or answers are labels out of balance; look at "
        "them with "
        "`gristmill review`",
        {"tasks": count, "of": tasks},
    )


@check("GM145", "Tasks unknown", "warning", "Can rollouts be grouped by task?", _GROUPED)
def ungroupable(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    count = sum(one.ungroupable for one in evidence.environments)
    if not evidence.usable or count <= 0.05 * evidence.usable:
        return None
    return Said(
        f"{count:,} of {many(evidence.usable, 'usable rollout')} ({percent(count / evidence.usable)}) have no task "
        "identity (no task index, or neither agent nor prompt), so they can be neither paired nor compared; collect "
        "with NeMo Gym 0.4 or later, which stamps it",
        {"ungroupable": count, "usable": evidence.usable},
    )


@check("GM130", "Outlying lengths", "note", "Are some answers far longer than the rest?")
def long_outliers(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    lengths = evidence.answer_chars
    if lengths is None or lengths.count < _FEW_ROWS or evidence.long_outliers <= _OUTLIERS * lengths.count:
        return None
    fence = lengths.p75 + 3 * (lengths.p75 - lengths.p25)
    return Said(
        f"{many(evidence.long_outliers, 'chosen answer')} of {lengths.count:,} are longer than {fence:,.0f} "
        "characters, "
        f"far beyond the middle half ({lengths.p25:,.0f} to {lengths.p75:,.0f}; the longest has "
        f"{lengths.max:,.0f}): in "
        "a loss over tokens they outweigh many short ones; read some before training, or set curate.max_chars",
        {"outliers": evidence.long_outliers, "fence": round(fence, 3), "max": lengths.max},
    )


@check("GM131", "Rows longer than training keeps", "warning", "Will training cut rows off?")
def over_length(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if evidence.max_length is None or evidence.tokens is None or evidence.over_length <= _OUTLIERS * evidence.chosen:
        return None
    need = int(evidence.tokens.p99) + 1
    return Said(
        f"about {many(evidence.over_length, 'chosen row')} of {evidence.chosen:,} are longer than train.max_length "
        f"({evidence.max_length:,} tokens, estimated from characters): what follows is cut, and with it the end of the "
        "answer",
        {"rows": evidence.over_length, "of": evidence.chosen, "p99": round(evidence.tokens.p99, 3)},
        (
            Remedy(
                setting="train.max_length",
                old=evidence.max_length,
                new=need,
                effect="would hold 99% of the rows",
                rows=0.99,
            ),
        ),
    )


@check("GM120", "No chat form", "warning", "Can every chosen row be trained on as a chat?")
def untrainable(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.rows:
        return None
    count = sum(content.problems.values())
    if count <= recipe.max_untrainable * content.rows:
        return None
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(content.problems.items(), key=lambda i: (-i[1], i[0])))
    return Said(
        f"{count:,} of {many(content.rows, 'row')} ({percent(count / content.rows)}{_sample(content)}) cannot "
        "be trained "
        f"on as a chat: {reasons}; more than {percent(recipe.max_untrainable)} (checks.max_untrainable); "
        "formatting drops "
        "them, with these reasons",
        {"rows": count, "of": content.rows, **content.problems},
        where=content.problem_where,
    )


@check("GM121", "Calls to undeclared tools", "warning", "Does the policy call only tools that it was given?")
def undeclared(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.undeclared_rows:
        return None
    names = ", ".join(f"{name} ({count})" for name, count in list(content.undeclared.items())[:5])
    return Said(
        f"{content.undeclared_rows:,} of {many(content.rows, 'row')}{_sample(content)} call tools that the row "
        "does not "
        f"declare: {names}; the model would learn to call what it cannot see, so declare them in the environment or "
        "leave these rows out with curate.where",
        {"rows": content.undeclared_rows, "of": content.rows},
    )


@check("GM122", "Invalid tool schemas", "warning", "Is every declared tool valid JSON Schema?")
def bad_tools(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.bad_tools:
        return None
    name, problem = next(iter(content.bad_tools.items()))
    return Said(
        f"{len(content.bad_tools)} of {many(content.tools, 'tool declaration')} are not valid JSON Schema; {name}: "
        f"{problem}; servers and templates refuse or misread them, so mend them in the environment",
        {"bad": len(content.bad_tools), "tools": content.tools},
        where=tuple(f"{tool}: {text}" for tool, text in list(content.bad_tools.items())[:3]),
    )


@check("GM123", "Arguments that the tool does not allow", "warning", "Do calls fit the tools' schemas?")
def bad_calls(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or content.bad_calls <= 0.01 * content.calls:
        return None
    return Said(
        f"{content.bad_calls:,} of {many(content.calls, 'call')} ({percent(content.bad_calls / content.calls)}"
        f"{_sample(content)}) have arguments that the tool's schema does not allow: the model would learn malformed "
        "calls; raise curate.min_reward, or leave these rows out",
        {"bad": content.bad_calls, "calls": content.calls},
        where=content.bad_call_where,
    )


@check("GM124", "Change of script", "warning", "Do answers drift into another language's script?")
def drift(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None:
        return None
    drifting = {
        name: (rows, of) for name, (rows, of) in content.drift.items() if of and 0.005 * of < rows <= _MINORITY * of
    }
    rows, of = (sum(pair[i] for pair in drifting.values()) for i in (0, 1))
    if not rows:
        return None
    return Said(
        f"{rows:,} of {many(of, 'answer')} ({percent(rows / of)}{_sample(content)}) in "
        f"{', '.join(sorted(drifting)[:3])} "
        "are partly in a script that their prompt does not use, while most are not: language mixing spreads once it is "
        "trained on; leave these rows out",
        {"rows": rows, "of": of},
        where=content.drift_where,
    )


@check("GM125", "Thinking tags in answers", "note", "Does reasoning stand inside the answers' text?")
def literal_think(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.literal_think:
        return None
    return Said(
        f"{content.literal_think:,} of {many(content.rows, 'row')}{_sample(content)} have <think> tags inside an "
        "answer's text: a template that also adds reasoning shows it twice, or cuts it; start the model server "
        "with its "
        "reasoning parser, or keep them on purpose (format.reasoning: inline_think)",
        {"rows": content.literal_think, "of": content.rows},
    )


@check("GM126", "Unusual conversations", "warning", "Does every conversation begin with a user?")
def no_user(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or content.no_user <= 0.01 * content.rows:
        return None
    return Said(
        f"{content.no_user:,} of {many(content.rows, 'row')}{_sample(content)} have no user message before the first "
        "answer: several chat templates refuse such rows, and the task may stand where training does not see it",
        {"rows": content.no_user, "of": content.rows},
    )


@check("GM127", "The chat template fails", "error", "Does the model's own template render the rows whole?")
def rendering(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.rendered or not content.render_errors + content.render_lost:
        return None
    return Said(
        f"of {many(content.rendered, 'row')} put through the policy's chat template, {content.render_errors} raise an "
        f"error and {content.render_lost} come out without an answer's text or call: training would fail, or "
        "learn from "
        "rows with holes; use another template or leave these rows out",
        {"errors": content.render_errors, "lost": content.render_lost, "rows": content.rendered},
        where=content.render_where,
    )


@check("GM128", "The template rewrites the prompt", "note", "Is a rendered prompt the beginning of the rendered row?")
def not_prefix(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    content = evidence.content
    if content is None or not content.rendered or not content.render_not_prefix:
        return None
    return Said(
        f"of {many(content.rendered, 'row')} put through the policy's chat template, "
        f"{content.render_not_prefix} render "
        "the prompt in another way once the answer follows: trainers that find the answer by rendering "
        "prefixes mask the "
        "wrong tokens; use a training template that keeps prefixes",
        {"rows": content.render_not_prefix, "of": content.rendered},
    )


def _sample(content: Content) -> str:
    return "" if content.rows == content.of else f", a sample of {content.of:,}"
