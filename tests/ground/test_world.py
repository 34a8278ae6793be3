"""Which worker a process is, by what starts it: shares of missing pieces, and what is said of variables amiss."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.errors import InputError
from gemscope.world import World


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, 0, 1),
        ({"GEMSCOPE_SHARE": "2/8"}, 2, 8),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, 1, 4),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, 2, 4),
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            2,
            4,
        ),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, 0, 4),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, 5, 6),
        ({"JOB_COMPLETION_INDEX": "1", "GEMSCOPE_WORKERS": "2"}, 1, 2),
        ({"GEMSCOPE_WORKERS": "2"}, 0, 1),
        ({"WORLD_SIZE": "4"}, 0, 1),
    ],
)
def test_rank_and_size_are_what_torchrun_slurm_kubernetes_or_a_share_say(
    environment: dict[str, str], rank: int, size: int
) -> None:
    assert World.here(environment) == World(rank, size)


def test_the_first_of_several_sources_counts() -> None:
    """torchrun within a Slurm array: each of its processes is one worker, and a share that was given is above all."""
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert World.here(environment) == World(3, 4)
    environment |= {"RANK": "1", "WORLD_SIZE": "2"}
    assert World.here(environment) == World(1, 2)
    assert World.here(environment | {"GEMSCOPE_SHARE": "5/9"}) == World(5, 9)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"GEMSCOPE_SHARE": "8/8"}, "GEMSCOPE_SHARE=8/8: expected RANK/COUNT, from 0/8 to 7/8"),
        ({"GEMSCOPE_SHARE": "3"}, "GEMSCOPE_SHARE=3: expected RANK/COUNT"),
        ({"GEMSCOPE_SHARE": "-1/4"}, "expected RANK/COUNT"),
        ({"GEMSCOPE_SHARE": "\N{SUPERSCRIPT TWO}/4"}, "expected RANK/COUNT"),
        ({"RANK": "1"}, "RANK is set and WORLD_SIZE is not"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one: expected a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2 make no rank from 0 to 1: set GEMSCOPE_SHARE"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "make no rank"),
        ({"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX is set and GEMSCOPE_WORKERS is not"),
        # An array with numbers left out: which of the four this is, nobody says.
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, "make no rank"),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, "make no rank"),
    ],
)
def test_variables_that_make_no_rank_are_refused_in_one_line(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        World.here(environment)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rank_beyond_the_size_is_refused() -> None:
    with pytest.raises(InputError, match="worker 2 of 2: ranks count from 0, the last is 1"):
        World(2, 2)


@given(st.lists(st.integers(), unique=True), st.integers(1, 9))
def test_shares_hold_every_missing_piece_once_and_are_as_long_as_each_other(missing: list[int], size: int) -> None:
    shares = [World(rank, size).share(missing) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == sorted(missing)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [World(rank, size).first for rank in range(size)] == [True] + [False] * (size - 1)


def test_asking_loads_no_torch() -> None:
    code = "import sys; from gemscope.world import World; World.here(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.integers(1, 9))
def test_of_all_workers_one_does_a_piece_whenever_they_begin(size: int) -> None:
    """Shares of what is missing are no such thing: to a worker that begins later less is missing."""
    for number in range(60):
        assert sum(World(rank, size).does(number) for rank in range(size)) == 1


@pytest.mark.parametrize(
    ("environment", "rank", "size", "local"),
    [
        ({}, 0, 1, 0),
        ({"MASTER_ADDR": "one", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, 9, 16, 1),
        ({"MASTER_ADDR": "one", "RANK": "1", "WORLD_SIZE": "2"}, 1, 2, 0),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 0, 1, 0),
        ({"GEMSCOPE_SHARE": "2/8"}, 0, 1, 0),
        (
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
            0,
            1,
            0,
        ),
    ],
)
def test_only_those_work_as_one_that_were_told_where_they_find_each_other(
    environment: dict[str, str], rank: int, size: int, local: int
) -> None:
    assert World.together(environment) == World(rank, size, local)
