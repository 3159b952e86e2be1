"""Processes that something else than torchrun has started: they find each other, or the error names the variable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.distributed.launchers import (
    SCHEDULERS,
    SLURM,
    TORCHRUN,
    LauncherError,
    check_single_process,
    read_distributed_context,
)
from engine.distributed.processes import SINGLE_PROCESS, DistributedContext

MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
LAUNCHERS = (TORCHRUN, *SCHEDULERS)
NAMES = [name for it in LAUNCHERS for name in (it.rank, *it.sizes, it.local_rank, it.local_size) if name]
VALUES = ("0", "1", "2", "", "x", "-1", "1e3", " 1")


def env(text: str, **more: str) -> dict[str, str]:
    """Return variables that are written as `A=1 B=2`."""
    return dict(pair.split("=") for pair in text.split()) | more


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RANK=0 WORLD_SIZE=1",
        "WORLD_SIZE=1",
        "WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1",
        "SLURM_NTASKS=8",  # a shell of salloc
        "SLURM_PROCID=0",  # a batch script
        "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=8",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1",
        "PMIX_RANK=0",
        "RANK=0 WORLD_SIZE=1 SLURM_PROCID=3 SLURM_NTASKS=8",  # how to run alone
    ],
)
def test_a_process_that_is_alone(text):
    assert read_distributed_context(env(text)) == SINGLE_PROCESS == DistributedContext(0, 1, 0, 1)
    check_single_process(env(text))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", (3, 4, 1, 2)),
        ("RANK=1 WORLD_SIZE=2", (1, 2, 0, 1)),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", (1, 2, 1, 2)),
        ("RANK=3 WORLD_SIZE=4 SLURM_PROCID=3 SLURM_LOCALID=1", (3, 4, 1, 2)),
        ("RANK=3 WORLD_SIZE=4 SLURM_PROCID=0 SLURM_LOCALID=1", (3, 4, 0, 1)),  # the variables of another process
        ("SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1", (1, 2, 1, 2)),
        ("SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=8", (1, 2, 0, 1)),
        ("RANK=0 WORLD_SIZE=2 SLURM_PROCID=1 SLURM_NTASKS=8", (0, 2, 0, 1)),  # torchrun in a job
        *[
            (
                f"{it.rank}=1 {it.sizes[0]}=2 {it.local_rank}=1" + f" {it.local_size}=2" * bool(it.local_size),
                (1, 2, 1, 2),
            )
            for it in (TORCHRUN, *SCHEDULERS)
        ],
    ],
)
def test_processes_of_a_launcher_join(text, place):
    assert read_distributed_context(env(text, **MEETING)) == DistributedContext(*place)


@pytest.mark.parametrize(("rank", "gpus", "place"), [(5, 4, (1, 4)), (1, 1, (0, 1)), (1, 8, (1, 6))])
def test_without_a_local_rank_each_process_takes_the_next_gpu(monkeypatch, rank, gpus, place):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    found = read_distributed_context({"RANK": str(rank), "WORLD_SIZE": "6"} | MEETING)
    assert (found.local_rank, found.local_size) == place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RANK=0", "WORLD_SIZE is missing, but a launcher has set RANK=0. Set RANK"),
        ("RANK=3 LOCAL_RANK=1", "WORLD_SIZE is missing, but a launcher has set RANK=3, LOCAL_RANK=1"),
        ("WORLD_SIZE=2", "RANK is missing, but a launcher has set WORLD_SIZE=2"),
        ("LOCAL_RANK=1", "RANK is missing"),
        ("LOCAL_WORLD_SIZE=4", "RANK is missing"),
        ("RANK=0 WORLD_SIZE=2", r"MASTER_ADDR is missing: torchrun started 2 processes \(RANK=0, WORLD_SIZE=2\)"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "MASTER_PORT is missing"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR= MASTER_PORT=1", "MASTER_ADDR is missing"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=x", "MASTER_PORT must be a whole number from 0, got 'x'"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT must be from 1 to 65535, got 70000"),
        ("RANK=2 WORLD_SIZE=2", "RANK must be below WORLD_SIZE=2, got 2"),
        ("RANK=1 WORLD_SIZE=1", "RANK must be below WORLD_SIZE=1, got 1"),
        ("RANK= WORLD_SIZE=2", "RANK must be a whole number from 0, got ''"),
        ("RANK=0 WORLD_SIZE=", "WORLD_SIZE must be a whole number from 1, got ''"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE must be a whole number from 1, got '0'"),
        ("RANK=-1 WORLD_SIZE=2", "RANK must be a whole number from 0, got '-1'"),
        ("RANK=0.0 WORLD_SIZE=2", "RANK must be a whole number from 0, got '0.0'"),
        ("SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS is missing, but srun has set SLURM_PROCID=1"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", r"MASTER_ADDR is missing: srun started 2 processes \(SLURM_PROCID=0"),
        ("SLURM_PROCID=2 SLURM_NTASKS=2", "SLURM_PROCID must be below SLURM_NTASKS=2, got 2"),
        ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", "MASTER_ADDR is missing: Open MPI started 2 processes"),
        ("PMI_RANK=1", "PMI_SIZE is missing, but MPI has set PMI_RANK=1"),
    ],
)
def test_what_is_missing_or_wrong_is_named(text, said):
    with pytest.raises(LauncherError, match=f"^{said}"):
        read_distributed_context(env(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK must be below LOCAL_WORLD_SIZE=2, got 2"),
        ("LOCAL_RANK=0 LOCAL_WORLD_SIZE=8", "LOCAL_WORLD_SIZE must not be above the number of processes, 4, got 8"),
        ("LOCAL_RANK=1", "LOCAL_RANK must not be above RANK=0, got 1"),
        ("LOCAL_RANK=x", "LOCAL_RANK must be a whole number from 0, got 'x'"),
    ],
)
def test_a_place_on_the_machine_that_cannot_be(text, said):
    with pytest.raises(LauncherError, match=f"^{said}$"):
        read_distributed_context(env(text, RANK="0", WORLD_SIZE="4", **MEETING))


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda it: it.name)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_tool_of_one_process_refuses_to_run_several_times(launcher, rank):
    with pytest.raises(LauncherError, match=f"runs in one process, but {launcher.name} started 2 .*set RANK=0 and"):
        check_single_process({launcher.rank: rank, launcher.sizes[0]: "2"})


def test_a_batch_script_of_slurm_may_run_a_tool_of_one_process():
    check_single_process({SLURM.rank: "0", "SLURM_NTASKS": "8"})
    with pytest.raises(LauncherError, match="srun started 8"):
        check_single_process({SLURM.rank: "1", "SLURM_NTASKS": "8"})


@given(st.dictionaries(st.sampled_from([*NAMES, *MEETING]), st.sampled_from(VALUES)))
def test_any_variables_give_a_place_or_a_message(variables):
    try:
        found = read_distributed_context(variables)
    except LauncherError as error:
        message = str(error)
    else:
        message = None
        assert 0 <= found.rank < found.size
        assert 0 <= found.local_rank < found.local_size <= found.size
        assert found.size == 1 or variables["MASTER_ADDR"]
    assert message is None or any(name in message for name in [*NAMES, *MEETING])
