"""The arithmetic of a plan, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.scope.budget import Budget, bytes_in
from gemscope.scope.plan import (
    Costs,
    Hours,
    Model,
    Plan,
    Rates,
    grouped,
    hands,
    larger_disks,
    lessons,
    planned,
    score_groups,
    weights,
)
from gemscope.scope.recipe import Aim, ScopeRecipe
from gemscope.training.config import TrainConfig

WIDE = Model(bytes=270_000_000, width=lambda site: 576, itemsize=2)
"""As SmolLM2-135M is: 134.5 million numbers in bfloat16, 576 wide."""
RECIPE = ScopeRecipe.of(
    """
[[saes]]
sites = ["*.res"]
widths = [2048]
l0s = [50]
[text]
length = 256
batch = 32
[score]
tokens = 50_000
loss_tokens = 10_000
"""
)
TOKENS = 1_000_000
ROOMY = Budget(disk=10**12, memory=10**12)


def aims(layers: int, kinds: tuple[str, ...] = ("res",), **settings: Any) -> tuple[Aim, ...]:
    config = TrainConfig(**{"width": 2048, "target_l0": 50, "rows": 2_000_000} | settings)
    sites = [Site(layer, kind) for layer in range(layers) for kind in kinds]
    return tuple(
        Aim(site, Site(site.layer, "mlp") if site.kind == "transcoder" else site, config) for site in sorted(sites)
    )


def test_an_sae_of_576_and_2048_has_so_many_weights() -> None:
    plain, skipping = aims(1)[0], aims(1, ("transcoder",), skip=True)[0]
    assert weights(plain, WIDE) == 2 * 576 * 2048 + 2 * 2048 + 576  # W_enc and W_dec, b_enc and threshold, b_dec
    assert weights(skipping, WIDE) == weights(plain, WIDE) + 576 * 576


def test_rows_of_a_million_tokens_at_thirty_sites_take_35_gigabytes() -> None:
    layout = planned(aims(30), RECIPE, WIDE, TOKENS, ROOMY)
    [one] = layout.passes
    assert one.disk == 30 * TOKENS * (576 * 2 + 12)  # float16, and token, document and offset
    kept = 30 * 4 * 2_363_968
    assert layout.kept == kept
    # Beside the rows there are, at most, two checkpoints of each: weights and Adam's two moments.
    assert layout.disk == one.disk + kept + 2 * 3 * kept
    # What 32 rows of 256 tokens are at thirty sites: computed, counted, stored; and half a gigabyte on its way.
    assert one.memory == 30 * 576 * 8192 * 6 + 2 * 2**28
    assert layout.memory == one.memory + 270_000_000


def test_sites_go_into_passes_by_depth_as_disk_allows() -> None:
    each = TOKENS * (576 * 2 + 12) + 2 * 12 * 2_363_968
    kept = 30 * 4 * 2_363_968
    layout = planned(aims(30), RECIPE, WIDE, TOKENS, replace(ROOMY, disk=kept + 10 * each))
    assert [len(one.aims) for one in layout.passes] == [10, 10, 10]
    assert [str(site) for site in layout.passes[1].sites] == [f"{layer}.res" for layer in range(10, 20)]
    one_less = planned(aims(30), RECIPE, WIDE, TOKENS, replace(ROOMY, disk=kept + 10 * each - 1))
    assert [len(one.aims) for one in one_less.passes] == [9, 9, 9, 3]
    assert layout.disk == kept + 10 * each


def test_sites_go_into_passes_as_memory_allows() -> None:
    numbers = 576 * 8192 * 6
    room = 270_000_000 + 2 * 2**28 + 12 * numbers
    layout = planned(aims(30), RECIPE, WIDE, TOKENS, replace(ROOMY, memory=room))
    assert [len(one.aims) for one in layout.passes] == [12, 12, 6]
    assert layout.memory <= room
    shared = planned(aims(30), RECIPE, WIDE, TOKENS, replace(ROOMY, memory=2 * room, workers=2))
    assert shared.passes == layout.passes


def test_a_transcoder_and_what_it_writes_are_read_in_one_pass_and_the_mlp_once() -> None:
    both = aims(1, ("transcoder", "mlp"))
    [one] = planned(both, RECIPE, WIDE, TOKENS, ROOMY).passes
    assert [str(site) for site in one.sites] == ["0.transcoder", "0.mlp"]
    assert one.disk == 2 * TOKENS * (576 * 2 + 12)


@given(
    layers=st.integers(1, 12),
    kinds=st.sets(st.sampled_from(["res", "mlp", "att", "transcoder"]), min_size=1),
    disk=st.integers(10**9, 10**11),
    memory=st.integers(10**9, 10**11),
)
def test_every_sae_is_in_one_pass_and_all_fit(layers: int, kinds: set[str], disk: int, memory: int) -> None:
    wanted, budget = aims(layers, tuple(sorted(kinds))), Budget(disk=disk, memory=memory)
    try:
        layout = planned(wanted, RECIPE, WIDE, TOKENS, budget)
    except InputError:  # one site does not fit alone
        reject()
    assert sorted(aim.key for one in layout.passes for aim in one.aims) == sorted(aim.key for aim in wanted)
    assert layout.disk <= disk
    assert layout.memory <= memory
    for one in layout.passes:
        assert {site for aim in one.aims for site in aim.sites} == set(one.sites)


def test_what_does_not_fit_alone_is_said_with_what_it_takes() -> None:
    with pytest.raises(InputError, match=r"0\.res alone takes 1\.2 GB on disk beside 9\.5 MB of finished SAEs"):
        planned(aims(1), RECIPE, WIDE, TOKENS, replace(ROOMY, disk=10**9))
    with pytest.raises(InputError, match=r"500\.0 MB of memory for a worker: training 0\.res, 2,048 features, L0 50"):
        planned(aims(1), RECIPE, WIDE, TOKENS, replace(ROOMY, memory=10**9, workers=2))


def test_all_settings_of_a_site_are_trained_from_one_reading_unless_memory_is_short() -> None:
    some = tuple(replace(one, config=replace(one.config, target_l0=l0)) for one in aims(2) for l0 in (20, 50, 80))
    assert [len(one) for one in lessons(some, WIDE, 10**10)] == [3, 3]
    # Weights, gradients and Adam's memory of one and a half SAEs, beside scales' rows and the first batch.
    short = 270_000_000 + 8 * 65_536 * 576 + 8 * 2048 * 1024 + 3 * (16 * 2_363_968 + 2 * 2048 * 576) // 2
    assert [len(one) for one in lessons(some, WIDE, short)] == [1] * 6
    other = (some[0], replace(some[1], config=replace(some[1].config, rows=1_000_000)))
    assert [len(one) for one in lessons(other, WIDE, 10**10)] == [1, 1]  # they read other rows


def test_hours_are_tokens_and_rows_by_how_fast_they_go() -> None:
    rates = Rates(reads=1000.0, predicts=500.0, learns=lambda aim: 8000.0)
    costs = Costs(RECIPE, WIDE, TOKENS, ROOMY, rates)
    layout = planned(aims(30), RECIPE, WIDE, TOKENS, ROOMY)
    hours = costs.hours(layout.passes)
    assert hours.reading == pytest.approx(1000 / 3600)
    assert hours.training == pytest.approx(30 * 250 / 3600)
    # Seventeen at a time: a reading of 50,000 tokens, and losses of 10,000 clean, ablated twice, and spliced.
    groups = [len(one) for one in costs.score_groups(aims(30))]
    assert groups == [17, 13]
    assert hours.scoring == pytest.approx((2 * 50 + 20 * (1 + 3 * 17) + 20 * (1 + 3 * 13)) / 3600)
    assert hours.describing == 0
    assert hours.all == pytest.approx(hours.reading + hours.training + hours.scoring)


def test_scores_are_shared_by_as_many_as_fit_and_by_all_workers() -> None:
    def groups(**changes: int) -> list[int]:
        options = {"tokens": 50_000, "loss_tokens": 10_000, "room": 10**9, "workers": 1} | changes
        return [len(one) for one in score_groups(range(40), lambda thing: 10**7, **options)]

    assert groups() == [17, 17, 6]
    assert groups(room=10**8) == [10] * 4
    assert groups(workers=8) == [5] * 8
    assert groups(loss_tokens=0) == [40]
    assert grouped([5, 50, 5], lambda size: size, 10) == [(5,), (50,), (5,)]


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 TB", 15 * 10**11), ("512MiB", 512 * 2**20), ("7", 7), ("3k", 3000), (12, 12)],
)
def test_sizes_are_read_as_they_are_written(text: str | int, size: int) -> None:
    assert bytes_in(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "5 parsecs", "1e9", "٣GB"])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InputError, match="is no size: expected a number of bytes, such as 50GB"):
        bytes_in(text)


# --- who does it ----------------------------------------------------------------------------------------------------


def _each() -> int:
    """Memory of a worker that trains one of these SAEs, in bytes."""
    learned = 16 * 2_363_968 + 2 * 2048 * 576
    return 270_000_000 + 8 * 65_536 * 576 + 8 * 2048 * 1024 + learned


def test_as_many_workers_are_taken_as_there_are_cores_saes_and_room_for() -> None:
    def chosen(layers: int, budget: Budget, most: int) -> int:
        return hands(aims(layers), RECIPE, WIDE, TOKENS, budget, most=most)

    assert chosen(30, ROOMY, 8) == 8
    assert chosen(3, ROOMY, 8) == 3
    assert chosen(30, ROOMY, 1) == 1
    # What is captured of one site is 28 MB on half a gigabyte; all thirty in one pass take .85 GB more.
    one = 270_000_000 + 2 * 2**28 + 30 * 576 * 8192 * 6
    assert one > _each()
    assert chosen(30, replace(ROOMY, memory=5 * one), 8) == 5
    assert chosen(30, replace(ROOMY, memory=5 * one - 5), 8) == 4  # five would read the text twice
    assert chosen(30, replace(ROOMY, memory=one), 8) == 1


def test_a_larger_disk_is_named_with_the_passes_that_it_spares() -> None:
    each = TOKENS * (576 * 2 + 12) + 2 * 12 * 2_363_968
    kept = 30 * 4 * 2_363_968
    now = replace(ROOMY, disk=kept + 5 * each)
    twice = 2 * now.disk  # room for ten, and for what is kept once more
    assert (twice - kept) // each == 10
    assert larger_disks(aims(30), RECIPE, WIDE, TOKENS, now) == ((kept + 10 * each, 3), (kept + 30 * each, 1))
    assert larger_disks(aims(30), RECIPE, WIDE, TOKENS, replace(now, disk=kept + 15 * each)) == ((kept + 30 * each, 1),)
    assert larger_disks(aims(30), RECIPE, WIDE, TOKENS, ROOMY) == ()


def test_what_more_disk_spares_is_said_in_a_line() -> None:
    each = TOKENS * (576 * 2 + 12) + 2 * 12 * 2_363_968
    budget = replace(ROOMY, disk=30 * 4 * 2_363_968 + 10 * each, workers=2)
    layout = planned(aims(30), RECIPE, WIDE, TOKENS, budget)
    hours = Hours(reading=6.0, training=2.0, scoring=1.0, describing=1.0)
    larger = larger_disks(aims(30), RECIPE, WIDE, TOKENS, budget)
    plan = Plan(layout=layout, passes=layout.passes, tokens=TOKENS, hours=hours, workers=2, larger=larger)
    assert "reading is 60% of it; with a disk of 24.7 GB 2 passes, 1 h less; of 36.9 GB 1 pass, 2 h less" in str(
        plan
    ).replace("\n", " ")
    assert plan.to_dict()["with_more_disk"] == [{"disk": disk, "passes": passes} for disk, passes in larger]
