"""How a process knows that it is one of several."""

from __future__ import annotations

import pytest

from mxtorch.engines.processes import Launch, launched

# The sixth of eight tasks, on the second of two machines.
TASK_OF_SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "20007",
}
# The MPICH proxy that SLURM starts once a machine, on the second of two.
PROXY_OF_MPICH = TASK_OF_SLURM | {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}, Launch(5, 8, 1, 4)),
        # As `srun --mpi=pmi2` sets them.
        (TASK_OF_SLURM | {"PMI_RANK": "5", "PMI_SIZE": "8"}, Launch(5, 8, 1, 4, "gpu03", 12007)),
        (
            PROXY_OF_MPICH | {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
            Launch(5, 8, 1, 4),
        ),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch(3, 4, 1, 2)),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Launch(1, 2, 1, 2),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script, in which no step is running
        (
            {
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_PROCID": "4",
                "SLURM_LOCALID": "0",
                "SLURM_NODEID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4,2",
                "SLURM_STEP_NODELIST": "gpu[03-04]",
                "SLURM_JOB_ID": "20007",
            },
            Launch(4, 6, 0, 2, "gpu03", 12007),
        ),
    ],
)
def test_how_a_process_was_started(variables, expected):
    assert launched(variables) == expected


def test_variables_that_are_not_whole():
    with pytest.raises(ValueError, match="there is no RANK"):
        launched({"WORLD_SIZE": "2"})
