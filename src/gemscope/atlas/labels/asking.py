"""Labels by asking a language model: a sheet of each feature goes out, words and a rule come back.

What was answered is in a journal before anything else happens (`journal.py`). Labels come into the atlas in the order
of the plan, some at a time, so that a run that was killed and gone on with leaves what an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from gemscope.atlas.dashboard import Dashboard, Explanation
from gemscope.atlas.files.database import writable
from gemscope.atlas.labels.answers import answer_of, object_in, rule_of, words_of
from gemscope.atlas.labels.endpoint import Endpoint
from gemscope.atlas.labels.journal import Asked, Journal, Known, Plan, journal_of, read_journal
from gemscope.atlas.labels.judging import EACH, Judgement, judge_words
from gemscope.atlas.labels.questions import Answerer, Failure, Reply, heard
from gemscope.atlas.labels.rules import Weighed
from gemscope.atlas.labels.scoring import Standing, score_labels, standings
from gemscope.atlas.labels.sheet import instructions, sheet
from gemscope.atlas.labels.wanting import wanting
from gemscope.atlas.reader import Atlas
from gemscope.errors import AccessError, InputError, one_line
from gemscope.features.rule_learning import WINDOW
from gemscope.progress import Progress, silent

if TYPE_CHECKING:
    from gemscope.activations.model import LanguageModel

METHOD = "asked"
BATCH = 64
"""Features whose labels are written together."""
ANSWER = 40
"""Tokens of an answer, about."""
LETTERS = 4
"""Characters of a token, about."""
_SHOWN = 20


@dataclass(frozen=True)
class Answered:
    """What came of asking."""

    model: str
    features: int
    """That were to be asked about."""
    words: int
    """That have words now."""
    rules: int
    """Of these, with a rule."""
    dropped: int
    """Of these, with a rule that could not be read: it was left out."""
    unclear: int
    """Of which the model says that nothing can be said."""
    failed: dict[int, str]
    """Why there is no answer, by feature."""
    before: int
    """Answered in an earlier run: not asked again."""
    tokens: tuple[int, int]
    """Of questions and of answers, as far as they were told."""
    journal: str
    """The file that has all of it."""
    scored: tuple[Standing, ...] = ()
    """How their rules stand on the rows that the atlas holds out."""
    judged: Judgement | None = None
    """How their words do, where they were judged."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.features:,} features asked of {self.model}: {self.words:,} have words, {self.rules:,} of these a "
            f"rule; {self.unclear:,} are unclear, {len(self.failed):,} failed"
        ]
        if self.dropped:
            lines.append(f"{self.dropped:,} rules could not be read and were left out")
        if self.before:
            lines.append(f"{self.before:,} were answered before and not asked again")
        if self.scored:
            lines += ["their rules, run on the rows held out:", *map(str, self.scored)]
        if self.judged:
            lines.append(str(self.judged))
        if any(self.tokens):
            lines.append(f"{self.tokens[0]:,} tokens read, {self.tokens[1]:,} written, as the model counts")
        shown = list(self.failed.items())[:_SHOWN]
        lines += [f"  {feature}: {reason}" for feature, reason in shown]
        if len(self.failed) > len(shown):
            lines.append(f"  … and {len(self.failed) - len(shown):,} more: {self.journal}")
        if self.failed:
            lines.append("--again asks those that failed once more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Estimate:
    """What asking would take."""

    model: str
    features: int
    """That are to be asked about."""
    before: int
    """Answered before, or failed: not asked again."""
    letters: int
    """Characters of all questions."""
    example: str
    """One question, whole."""
    score: bool = False
    """Whether words are to be judged too."""
    price: tuple[float, float] | None = None
    """Of a million tokens read and written."""
    rate: float | None = None
    """Questions a minute."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Read and written, about."""
        shown = 4 * EACH if self.score else 0  # windows of a question; there are two
        read = self.letters // LETTERS + self.features * 2 * shown * (WINDOW + 8)
        return read, self.features * (ANSWER + 2 * 2 * shown)

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        if self.price is None:
            return None
        return sum(tokens * price for tokens, price in zip(self.tokens, self.price, strict=True)) / 1e6

    @property
    def minutes(self) -> float | None:
        """At the rate."""
        return self.features * (3 if self.score else 1) / self.rate if self.rate else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"tokens": self.tokens, "cost": self.cost, "minutes": self.minutes}

    def __str__(self) -> str:
        read, written = self.tokens
        lines = [
            f"{self.features:,} features to be asked of {self.model}"
            + (f", {self.before:,} were asked before" if self.before else ""),
            f"about {read:,} tokens to be read (characters / {LETTERS}) and {written:,} written ({ANSWER} an answer, "
            f"more by a model that thinks first){', judging included' if self.score else ''}",
        ]
        if self.cost is not None:
            lines.append(f"about {self.cost:,.2f} in the currency of the price")
        if self.minutes is not None:
            lines.append(f"{self.minutes:,.1f} minutes at {self.rate:g} questions a minute")
        return "\n".join([*lines, *(["one of the questions:", "", self.example] if self.example else [])])


def explain_with(
    atlas: Atlas,
    by: Answerer | LanguageModel,
    features: Iterable[int] | None = None,
    *,
    limit: int | None = None,
    again: bool = False,
    score: bool = False,
    progress: Progress = silent,
) -> Answered:
    """Asks a language model what features stand for, in words and as a rule: a server, or a model in this process.

    `features` None: those without a sure label, the ones that fire most often first (`wanting`). Of one that was
    answered nobody is asked twice; `again` asks once more where an answer failed. A rule is scored on the rows that the
    atlas holds out; one that cannot be read is left out. Words without a rule have no score, unless `score` has the
    model judge all words as well (`judging.py`). What people say stays, and stays on top.

    Raises AccessError where nothing can be written, while another process asks, and for a server that refuses or that
    is not reached; InputError for a model without a chat template, and for words to be judged where no rows are held
    out; NotFound; StorageFull. What was answered until then is kept, and the same call goes on from there.
    """
    if score and not len(atlas.pool):
        raise InputError(f"{atlas.folder} holds no rows out to judge words on: describe it anew")
    if not writable(atlas.folder):  # before anybody is paid
        raise AccessError(f"nothing can be written in {atlas.folder}: copy the atlas elsewhere to label its features")
    answerer, chosen = answerer_of(by), None if features is None else _living(atlas, features)
    with journal_of(atlas.folder, atlas.manifest) as journal:
        plan = _planned(atlas, journal, answerer.model, chosen, limit=limit, again=again)
        if plan is not journal.plan:
            if journal.plan is not None:  # given up for this one: what was answered comes in all the same
                _Written(atlas, journal).add(whole=False)
            journal.begin(plan)
        before = sum(feature in journal.of(plan.model) for feature in plan.features)
        _ask(atlas, journal, plan, answerer, progress)
        scored = _scored(atlas, plan, progress) if len(atlas.pool) else ()
        judged = judge_words(atlas, answerer, plan.features, journal, again=again, progress=progress) if score else None
        journal.end()
        return _told(plan, journal, before, scored, judged)


def estimate(
    atlas: Atlas,
    by: Answerer | LanguageModel,
    features: Iterable[int] | None = None,
    *,
    limit: int | None = None,
    again: bool = False,
    score: bool = False,
    price: tuple[float, float] | None = None,
) -> Estimate:
    """What `explain_with` would take; nobody is asked."""
    answerer, chosen = answerer_of(by), None if features is None else _living(atlas, features)
    known = read_journal(atlas.folder, atlas.manifest)
    plan = _planned(atlas, known, answerer.model, chosen, limit=limit, again=again)
    known.follow(plan)
    asked = [feature for feature in plan.features if feature not in known.of(plan.model)]
    letters, example = 0, ""
    for feature in asked:
        text = question(atlas[feature])
        letters, example = letters + len(text), example or text
    rate = getattr(by, "rate", None)
    return Estimate(plan.model, len(asked), len(plan.features) - len(asked), letters, example, score, price, rate)


def answerer_of(by: Answerer | LanguageModel) -> Answerer:
    """Whoever answers questions; a model in this process is made one."""
    if isinstance(by, Endpoint):  # torch is not needed
        return by
    from gemscope.activations.model import LanguageModel
    from gemscope.atlas.labels.here import Here

    return Here(by) if isinstance(by, LanguageModel) else by


def _living(atlas: Atlas, features: Iterable[int]) -> list[int]:
    """Each once; those alone of which there is something to see. Raises NotFound."""
    chosen = list(dict.fromkeys(map(int, features)))
    return [feature for feature in chosen if len(atlas.entry(feature).positions)]


def _planned(
    atlas: Atlas, known: Known, model: str, chosen: Sequence[int] | None, *, limit: int | None, again: bool
) -> Plan:
    """The plan that is not over, if it was chosen by the same words; else a new one."""
    if limit is not None and limit < 0:
        raise InputError(f"limit={limit}: it cannot be below 0")
    named = "wanting" if chosen is None else " ".join(map(str, chosen))
    selection = f"{named}, {'all' if limit is None else limit}{', again' if again else ''}"
    going = known.plan
    if going is not None and (going.model, going.selection) == (model, selection):
        return going
    if chosen is None:
        asked = known.of(model)
        chosen = [one for one in wanting(atlas) if one not in asked or (again and asked[one].failed)]
    return Plan(features=list(chosen[:limit]), model=model, selection=selection, again=again)


# --- asked ----------------------------------------------------------------------------------------------------------


def _ask(atlas: Atlas, journal: Journal, plan: Plan, answerer: Answerer, progress: Progress) -> None:
    asked = journal.of(plan.model)
    waiting = [feature for feature in plan.features if feature not in asked]
    written = _Written(atlas, journal)
    written.add()
    with progress("ask", len(waiting), "features") as advance:

        def keep(feature: int, came: Reply | Failure) -> None:
            journal.add(_read(feature, plan.model, came))
            written.add()
            advance(1)

        questions = ((feature, question(atlas[feature])) for feature in waiting)
        heard(
            answerer,
            questions,
            keep,
            kept=f"what was answered is in {journal.path}, the same command goes on from there",
        )


def question(feature: Dashboard) -> str:
    """One turn of a user's: how to answer comes first, the same for all, so that servers read it once."""
    return f"""\
{instructions()}

Answer with one JSON object and nothing else: {{"text": WORDS, "rule": RULE}}. Quotation marks within RULE are written \
\\", as in {{"text": "…", "rule": "\\"of\\" after <number>"}}.

{sheet(feature)}"""


def _read(feature: int, model: str, came: Reply | Failure) -> Asked:
    """What came, as far as it can be used."""
    made = date.today().isoformat()
    if isinstance(came, Failure):
        return Asked(feature=feature, model=model, made=made, failed=one_line(came.reason, 300), said=came.said)
    try:
        said = object_in(came.text)
        words = words_of(said["text"])
    except InputError as error:
        return Asked(
            feature=feature, model=model, made=made, failed=str(error), said=came.text[:500], tokens=came.tokens
        )
    rule = dropped = ""
    try:
        rule = rule_of(said.get("rule"))
    except InputError as error:
        dropped = str(error)
    return Asked(feature=feature, model=model, made=made, text=words, rule=rule, dropped=dropped, tokens=came.tokens)


# --- written --------------------------------------------------------------------------------------------------------


class _Written:
    """Labels on their way into the atlas."""

    def __init__(self, atlas: Atlas, journal: Journal) -> None:
        self.atlas, self.journal = atlas, journal
        self._there = {_essence(feature, one) for feature, one in atlas.explanations()}
        self._weighed = Weighed(atlas)

    def add(self, *, whole: bool = True) -> None:
        """Puts labels there, always the same ones together, as far as all before them have come; where not `whole`,
        all that have.
        """
        journal, plan = self.journal, self.journal.plan
        assert plan is not None
        asked = journal.of(plan.model)
        while journal.written < len(plan.features):
            batch = plan.features[journal.written : journal.written + BATCH]
            if whole and not all(feature in asked for feature in batch):
                return
            answers = {feature: _explanation(asked[feature]) for feature in batch if feature in asked}
            said = {feature: self._weighed(feature, one) for feature, one in answers.items() if one is not None}
            # Whoever was killed between the atlas and the journal has written all of them.
            new = {feature: one for feature, one in said.items() if _essence(feature, one) not in self._there}
            if new:
                self.atlas.explain_all(new)
            journal.wrote(journal.written + len(batch))


def _essence(feature: int, one: Explanation) -> tuple[int, str, str, str, str]:
    return feature, one.method, one.model, one.text, one.rule


def _explanation(asked: Asked) -> Explanation | None:
    """Raises InputError for what somebody has written into the journal."""
    if asked.failed:
        return None
    answer = answer_of(asked.text, asked.rule)
    if answer.unclear:
        return None
    return Explanation(id=0, text=answer.text, method=METHOD, rule=answer.rule, model=asked.model, made=asked.made)


def _scored(atlas: Atlas, plan: Plan, progress: Progress) -> tuple[Standing, ...]:
    """Rules that were not run yet are, all together; how all of this model stand."""

    def mine() -> list[tuple[int, Explanation]]:
        features = set(plan.features)
        return [
            (feature, one)
            for feature, one in atlas.explanations()
            if feature in features and (one.method, one.model) == (METHOD, plan.model) and one.rule
        ]

    new = [feature for feature, one in mine() if all(trial.text for trial in one.trials)]
    if new:
        score_labels(atlas, new, progress=progress)
    found = standings([(one, trial) for _, one in mine() for trial in one.trials if not trial.text])
    return tuple(one for one in found if one.labels == "with a label")


def _told(
    plan: Plan, journal: Journal, before: int, scored: tuple[Standing, ...], judged: Judgement | None
) -> Answered:
    asked = [journal.of(plan.model)[feature] for feature in plan.features]
    words = [one for one in asked if _explanation(one) is not None]
    failed = {one.feature: one.failed for one in asked if one.failed}
    read, written = (sum(one.tokens[side] for one in asked) for side in (0, 1))
    return Answered(
        model=plan.model,
        features=len(asked),
        words=len(words),
        rules=sum(bool(one.rule) for one in words),
        dropped=sum(bool(one.dropped) for one in words),
        unclear=len(asked) - len(words) - len(failed),
        failed=failed,
        before=before,
        tokens=(read, written),
        journal=str(journal.path),
        scored=scored,
        judged=judged,
    )
