"""What a training run came to: a page with its curves, and the card that lies beside the weights. Reads what the run
wrote down (`log.jsonl`, `times.jsonl`, `figures.json`) and measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gemscope.activations.site import described
from gemscope.checked import EXACT, Count, read_json
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.features.scope_manifest import SCORE
from gemscope.features.scored import Figures, figures_of
from gemscope.pages.plain import Paged
from gemscope.pages.training import training_document
from gemscope.reports import cards
from gemscope.reports.cards import PLACE, REPORT
from gemscope.text.printable import clipped, readable
from gemscope.text.rows import passed_over
from gemscope.training.config import FAR, TrainConfig
from gemscope.training.log import read


@dataclass(frozen=True)
class TrainingReport(Paged):
    """A finished run. `str` is one line, `to_html` the page, `to_card` the card; `write` puts both in its folder."""

    folder: Path
    figures: Mapping[str, Any]
    """What the run ended with."""
    lines: Sequence[Mapping[str, float]]
    """Its log."""
    times: Sequence[Mapping[str, float]]
    """When each line was written, and at how many rows per second since the one before."""

    @property
    def sae(self) -> Path:
        """The SAE's folder."""
        return self.folder / "sae"

    @property
    def page(self) -> Path:
        """Where `write` puts the page."""
        return self.folder / "report.html"

    @property
    def card(self) -> Path:
        """Where `write` puts the card."""
        return self.sae / "README.md"

    @property
    def model(self) -> str:
        """Whose activations they are."""
        return str(self.figures["data"].get("model"))

    @property
    def site(self) -> str:
        """Where it reads, and where it writes if that is elsewhere; several sites of a crosscoder."""
        return described(*(", ".join(self.figures[key]) for key in ("site", "site_out")))

    @property
    def scored(self) -> bool:
        """Whether `score` can measure it: a crosscoder has no place in a model that it could be spliced into."""
        return len(self.figures["site"]) == 1

    @property
    def device(self) -> str:
        """Where it was trained."""
        return str(self.figures.get("device", "cpu"))

    @property
    def config(self) -> Mapping[str, Any]:
        """The recipe in full."""
        config: Mapping[str, Any] = self.figures["config"]
        return config

    @property
    def best(self) -> tuple[str, Mapping[str, Any]]:
        """The rows that count: held-out ones, or where there were none, those that training went on to."""
        return ("held-out", self.figures["held_out"]) if "held_out" in self.figures else self.rows[0]

    @property
    def passed(self) -> str:
        """How many rows of the corpus had no text, by reason, in words; "" where all had one."""
        return passed_over(self.figures.get("passed", {}))

    @property
    def rows(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """What figures there are: by whose rows they are."""
        known = (("held_out", "held-out"), ("training", "training"))
        return tuple((name, self.figures[key]) for key, name in known if key in self.figures)

    @property
    def off_target(self) -> bool:
        """Whether L0 was far from its target before thresholds were set to meet it: such an SAE is not what it could
        be.
        """
        aimed = self.config["target_l0"]
        return bool(self.figures["meets_target"]) and abs(self.figures["l0_as_trained"] / aimed - 1) > FAR

    def __str__(self) -> str:
        name, at = self.best
        aimed = f" ({self.config['target_l0']:g} aimed at)" if self.figures["meets_target"] else ""
        return (
            f"{self.config['width']:,} features at {self.site}: L0 {at['l0']:.1f}{aimed}, FVU {at['fvu']:.4f}, "
            f"dead {at['dead']:.2%}, dense {at['dense']:.2%} on {at['rows']:,} {name} rows"
            f"{f'; {self.passed}' if self.passed else ''}"
        )

    def to_dict(self) -> dict[str, object]:
        """For JSON: where everything lies, and the figures."""
        places = {"sae": self.sae, "report": self.page, "card": self.card, "log": self.folder / "log.jsonl"}
        return {
            **{name: str(path) for name, path in places.items()},
            "site": self.site,
            "d_sae": self.config["width"],
            "device": self.device,
            **{
                key: self.figures[key]
                for key in ("l0_as_trained", "training", "held_out", "passed", "config")
                if key in self.figures
            },
        }

    def to_html(self) -> str:
        """One HTML file with the curves; nothing in it is fetched."""
        return training_document(self)

    def write(self) -> None:
        """The page and the card, in place of those that were there. Raises StorageFull, FileError."""
        for path, text in ((self.page, self.to_html()), (self.card, self.to_card())):
            with written_aside(path) as file:
                file.write_text(text, encoding="utf-8")

    # --- the card ---------------------------------------------------------------------------------------------

    def to_card(
        self,
        *,
        way: str = f"see [report.html]({REPORT}) and `log.jsonl` for the way there",
        measuring: str | None = None,
    ) -> str:
        """Markdown: figures with their conditions, how to use the SAE, the data and the recipe; `way` says where the
        run's log lies, `measuring` what measures the SAE on text unlike its own.
        """
        rows, config = dict(self.rows), self.config
        heads = [f"{name} rows" for name in rows]
        table = "\n".join(
            f"| {what} | {' | '.join(form.format(one[key]) for one in rows.values())} |"
            for what, key, form in (
                ("rows", "rows", "{:,}"),
                ("L0", "l0", "{:.2f}"),
                ("FVU", "fvu", "{:.4f}"),
                ("dead: never fired on these rows", "dead", "{:.2%}"),
                ("dense: fired on more than 10 %", "dense", "{:.2%}"),
            )
        )
        passed = [f"- {self.passed}"] if self.passed else []
        data = "\n".join(_listed(self.figures["data"]) + passed)
        held = "\n".join(_listed(self.figures["held_out_data"]))
        return f"""---
library_name: gemscope
tags: [sparse-autoencoder, {"saelens" if self.scored else "crosscoder"}]
base_model: {json.dumps(self.model)}
---
# {config["width"]:,} features at {_code(self.site)}

A {config["architecture"]} sparse autoencoder of {_code(self.model)}, {self._read()}, trained with gemscope.

| | {" | ".join(heads)} |
| --- |{" --- |" * len(heads)}
{table}

A row is a token that counts: special tokens, padding, first positions and attention sinks (norms above three
times the usual one in the middle of the model) are in no figure, and no feature was trained on them.
FVU = Σ‖y − ŷ‖² / Σ‖y − μ‖² with one mean over
the rows{self._weighed()}.
{self._thresholds()} {self._unseen()}
{f"{chr(10)}{cards.measured(self._scored(), way=measuring)}{chr(10)}" if self.scored else ""}
## Use

```python
import gemscope as gs

{self._use()}
```

## Data

{data}
{f"{chr(10)}Held out:{chr(10)}{chr(10)}{held}{chr(10)}" if held else ""}
## Recipe

{self.figures["steps"]:,} steps; {way}.

```toml
[train]
{chr(10).join(f"{name} = {_toml(value)}" for name, value in config.items())}
```

Made with {", ".join(f"{name} {_code(version)}" for name, version in self.figures["versions"].items())},
on {_code(self.device)}.
"""

    def _scored(self) -> Figures | None:
        """Of the score beside the SAE, where there is one."""
        return figures_of(path) if (path := self.sae / SCORE).is_file() else None

    def _read(self) -> str:
        if not self.scored:
            return "which reads and writes several sites together"
        same = self.figures["site"] == self.figures["site_out"]
        return "which explains what it reads" if same else "which predicts one site from another (a transcoder)"

    def _weighed(self) -> str:
        return "" if self.scored else ", every site scaled to the same variance"

    def _thresholds(self) -> str:
        aimed, trained = self.config["target_l0"], self.figures["l0_as_trained"]
        count = f"{self.figures['training']['rows']:,} rows"
        if self.config["architecture"] == "batchtopk":
            return f"The one threshold is the value that lets {aimed:g} features per token through on {count}."
        if self.config["architecture"] == "jumprelu" and self.figures["meets_target"]:
            return f"Thresholds were rescaled by one factor to an L0 of {aimed:g} on {count}, from {trained:.1f}."
        return f"Training ended at an L0 of {trained:.1f}."

    def _unseen(self) -> str:
        if "held_out" in self.figures:
            return "Held-out rows are of text that was kept apart; whether that is so is for its source to say."
        return "No rows were held out: these figures are of text that was trained on."

    def _use(self) -> str:
        if not self.scored:
            return f'crosscoder = gs.load_crosscoder("{PLACE}")'
        return (
            f"model = gs.load_model({json.dumps(self.model)})\n"
            f'sae = gs.load_sae("{PLACE}")\n'
            'print(gs.look(model, sae, "Some text."))'
        )


def training_report(folder: str | Path) -> TrainingReport:
    """The report of a finished run, of the folder that `train` was given as `to`. Raises NotFound, CorruptFile."""
    folder = Path(folder)
    path = folder / "figures.json"
    if not path.exists():
        raise NotFound(
            f"no finished training run in {folder}: it has no figures.json; start the run again to finish it"
        )
    remedy = "start the run again to have them anew"
    read_json(path, _Figures, remedy=remedy)
    figures = read_json(path, dict[str, Any])
    try:
        figures["config"] = TrainConfig.of(figures["config"], where=str(path)).to_dict()
    except InputError as error:
        raise CorruptFile(f"{path} holds no recipe: {error}; {remedy}") from error
    lines, times = read(folder / "log.jsonl", needed=("rows",)), read(folder / "times.jsonl")
    return TrainingReport(folder, figures, lines, times)


_Share = Annotated[float, Meta(ge=0, le=1)]
_Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
_Facts = dict[str, str | Annotated[int, Meta(ge=-EXACT, le=EXACT)] | _Finite | bool | None]


@dataclass(frozen=True, kw_only=True)
class _Densities:
    low: _Finite
    step: _Finite
    counts: list[Count]


@dataclass(frozen=True, kw_only=True)
class _Worth:
    """What the SAE is worth on some rows."""

    rows: Count
    fvu: Annotated[float, Meta(ge=0, le=1e30)]
    l0: Annotated[float, Meta(ge=0, le=1e30)]
    dead: _Share
    dense: _Share
    densities: _Densities


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """What `figures.json` must say."""

    site: Annotated[list[str], Meta(min_length=1)]
    site_out: Annotated[list[str], Meta(min_length=1)]
    data: _Facts
    config: dict[str, Any]
    training: _Worth
    l0_as_trained: Annotated[float, Meta(ge=0, le=1e30)]
    steps: Count
    meets_target: bool
    versions: dict[str, str]
    device: str = "cpu"
    held_out_data: _Facts
    held_out: _Worth | UnsetType = UNSET
    passed: dict[str, Count] = field(default_factory=dict)


def _listed(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {_named(name)}: {_code(value)}" for name, value in facts.items() if value is not None]


def _named(fact: str) -> str:
    return fact.replace("_", " ") if fact.isidentifier() else _code(fact)


def _code(value: object) -> str:
    """Anybody's text as Markdown that stays what it is."""
    return f"`{readable(clipped(str(value))).replace('`', 'ˋ').replace('|', '¦')}`"


def _toml(value: object) -> str:
    return json.dumps(value)
