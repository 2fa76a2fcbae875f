// test_launch.c: launch_detect on the environment variables of each launcher, and errors in them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/ranks/launch.h"

// All variables that launch_detect reads; a test sets those it needs.
static const char *const VARIABLES[] = {"RANK",
                                        "WORLD_SIZE",
                                        "LOCAL_RANK",
                                        "MASTER_ADDR",
                                        "MASTER_PORT",
                                        "TOKAMAK_RENDEZVOUS",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "PMIX_RANK",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "MPI_LOCALRANKID",
                                        "SLURM_NTASKS",
                                        "SLURM_PROCID",
                                        "SLURM_LOCALID",
                                        "SLURM_STEP_NUM_TASKS",
                                        "TORCHELASTIC_RUN_ID",
                                        "TORCHELASTIC_USE_AGENT_STORE"};

// Sets the variables in "A=1 B=2" and unsets all others.
static void set_environment(const char *settings) {
    for (size_t i = 0; i < sizeof VARIABLES / sizeof VARIABLES[0]; ++i) unsetenv(VARIABLES[i]);
    char copy[512];
    assert_true((size_t)snprintf(copy, sizeof copy, "%s", settings) < sizeof copy);
    char *rest = copy;
    for (char *setting; (setting = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(setting, '=');
        if (value == NULL) continue;
        *value++ = '\0';
        bool known = false;
        for (size_t i = 0; i < sizeof VARIABLES / sizeof VARIABLES[0]; ++i)
            known = known || strcmp(VARIABLES[i], setting) == 0;
        assert_true(known);
        assert_int_equal(setenv(setting, value, 1), 0);
    }
}

typedef struct {
    const char *settings, *wanted, *rendezvous;
    LaunchKind kind;
    int rank, world, local_rank;
    const char *place;  // address:port or directory; NULL: none
} Row;

static void test_kinds(void **state) {
    (void)state;
    static const Row ROWS[] = {
        // nothing, or one process of a launcher
        {"", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"", "auto", "/shared", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"PMIX_RANK=0 SLURM_STEP_NUM_TASKS=1", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"SLURM_NTASKS=4 SLURM_PROCID=0", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},  // in a batch script
        {"SLURM_NTASKS=1 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"RANK=0 WORLD_SIZE=1", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"RANK= WORLD_SIZE=", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        // mpirun inside a step of one task a node
        {"OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0 SLURM_STEP_NUM_TASKS=2", "auto", "", LAUNCH_SINGLE, 0, 1, 0,
         NULL},
        // single: whatever is set
        {"RANK=2 WORLD_SIZE=4", "single", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1", "single", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"SLURM_STEP_NUM_TASKS=4", "single", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        // MPI: rank and world are set by MPI_Init
        {"OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_LOCAL_RANK=1", "auto", "", LAUNCH_MPI, 0, 0,
         1, NULL},
        {"PMIX_RANK=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=2", "auto", "", LAUNCH_MPI, 0, 0, 2, NULL},
        {"PMIX_RANK=3", "auto", "", LAUNCH_MPI, 0, 0, 0, NULL},
        {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1", "auto", "", LAUNCH_MPI, 0, 0, 1, NULL},
        {"PMI_RANK=0 PMI_SIZE=1", "auto", "", LAUNCH_SINGLE, 0, 1, 0, NULL},
        {"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 SLURM_LOCALID=0 LOCAL_RANK=5",
         "auto", "", LAUNCH_MPI, 0, 0, 1, NULL},
        {"OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0", "mpi", "", LAUNCH_MPI, 0, 0, 0, NULL},
        {"OMPI_COMM_WORLD_SIZE=2 RANK=0 WORLD_SIZE=2", "auto", "/shared", LAUNCH_MPI, 0, 0, 0, NULL},
        // TCP
        {"RANK=2 WORLD_SIZE=4 MASTER_ADDR=node1 MASTER_PORT=1234 LOCAL_RANK=1", "auto", "", LAUNCH_TCP, 2, 4, 1,
         "node1:1234"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=::1", "auto", "", LAUNCH_TCP, 0, 2, 0, "::1:29500"},
        {"RANK=0 WORLD_SIZE=1 MASTER_ADDR=a", "tcp", "", LAUNCH_TCP, 0, 1, 0, "a:29500"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1", "auto", "", LAUNCH_TCP, 1, 2, 1,
         "a:29500"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1", "tcp", "", LAUNCH_TCP, 1,
         2, 0, "a:29500"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", "tcp", "/shared", LAUNCH_TCP, 1, 2, 0, "a:29500"},
        // torchrun: its agent may use the port, and srun --mpi=pmix may have started torchrun
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=40000 TORCHELASTIC_RUN_ID=x "
         "TORCHELASTIC_USE_AGENT_STORE=True",
         "auto", "", LAUNCH_TCP, 1, 2, 0, "a:40001"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=40000 TORCHELASTIC_RUN_ID=x "
         "TORCHELASTIC_USE_AGENT_STORE=False",
         "auto", "", LAUNCH_TCP, 1, 2, 0, "a:40000"},
        {"RANK=3 WORLD_SIZE=4 MASTER_ADDR=a TORCHELASTIC_RUN_ID=x LOCAL_RANK=1 PMIX_RANK=1 SLURM_STEP_NUM_TASKS=2",
         "auto", "", LAUNCH_TCP, 3, 4, 1, "a:29500"},
        // a directory
        {"RANK=1 WORLD_SIZE=2", "auto", "/shared", LAUNCH_DIRECTORY, 1, 2, 0, "/shared"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", "auto", "/shared", LAUNCH_DIRECTORY, 1, 2, 0, "/shared"},
        {"RANK=1 WORLD_SIZE=2 TOKAMAK_RENDEZVOUS=/env", "auto", "", LAUNCH_DIRECTORY, 1, 2, 0, "/env"},
        {"RANK=1 WORLD_SIZE=2 TOKAMAK_RENDEZVOUS=/env", "directory", "/shared", LAUNCH_DIRECTORY, 1, 2, 0, "/shared"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; ++i) {
        const Row *row = &ROWS[i];
        set_environment(row->settings);
        Launch launch;
        Error err = {""};
        if (!launch_detect(&launch, row->wanted, row->rendezvous, &err))
            fail_msg("%s (%s): %s", row->settings, row->wanted, err.message);
        char place[1400] = "";
        if (launch.kind == LAUNCH_TCP) snprintf(place, sizeof place, "%s:%d", launch.address, launch.port);
        if (launch.kind == LAUNCH_DIRECTORY) snprintf(place, sizeof place, "%s", launch.directory);
        if (launch.kind != row->kind || launch.rank != row->rank || launch.world != row->world ||
            launch.local_rank != row->local_rank || strcmp(place, row->place == NULL ? "" : row->place) != 0)
            fail_msg("%s (%s): found %s, rank %d of %d, local rank %d, %s", row->settings, row->wanted,
                     launch_kind_name(launch.kind), launch.rank, launch.world, launch.local_rank, place);
        assert_true(launch.host[0] != '\0');
    }
    set_environment("");
}

static void test_errors(void **state) {
    (void)state;
    static const struct {
        const char *settings, *wanted, *rendezvous, *mention;
    } ROWS[] = {
        {"RANK=1", "auto", "", "WORLD_SIZE: expected to be set, since RANK is \"1\""},
        {"WORLD_SIZE=2", "auto", "", "RANK: expected to be set, since WORLD_SIZE is \"2\""},
        {"RANK=2 WORLD_SIZE=2 MASTER_ADDR=a", "auto", "",
         "RANK: expected a rank (WORLD_SIZE - 1 is the last) from 0 "
         "to 1, found \"2\""},
        {"RANK=-1 WORLD_SIZE=2 MASTER_ADDR=a", "auto", "", "found \"-1\""},
        {"RANK=1x WORLD_SIZE=2 MASTER_ADDR=a", "auto", "", "RANK: expected a rank"},
        {"RANK=0 WORLD_SIZE=0 MASTER_ADDR=a", "auto", "", "WORLD_SIZE: expected a number of processes from 1"},
        {"RANK=0 WORLD_SIZE=99999999999 MASTER_ADDR=a", "auto", "", "found \"99999999999\""},
        {"RANK=0 WORLD_SIZE=2", "auto", "", "MASTER_ADDR: expected rank 0's host"},
        {"RANK=0 WORLD_SIZE=2", "tcp", "/shared", "MASTER_ADDR: expected"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=0", "auto", "",
         "MASTER_PORT: expected a port from 1 to 65535"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a LOCAL_RANK=-2", "auto", "", "LOCAL_RANK: expected"},
        {"RANK=0 WORLD_SIZE=2", "directory", "", "launch=directory: expected rendezvous= or $TOKAMAK_RENDEZVOUS"},
        {"", "directory", "/shared", "launch=directory: expected RANK and WORLD_SIZE to be set, found neither"},
        {"", "tcp", "", "launch=tcp: expected RANK and WORLD_SIZE"},
        {"", "mpi", "", "launch=mpi: expected to be started by mpirun"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "mpi", "", "launch=mpi: expected"},
        {"", "pigeon", "", "launch: expected auto, single, mpi, tcp or directory, found \"pigeon\""},
        {"OMPI_COMM_WORLD_SIZE=two", "auto", "", "OMPI_COMM_WORLD_SIZE: expected a number"},
        {"SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1", "auto", "",
         "srun started 4 tasks but nothing connects them; add "
         "--mpi=pmix"},
        {"SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1", "auto", "/shared", "RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; ++i) {
        set_environment(ROWS[i].settings);
        Launch launch;
        Error err = {""};
        if (launch_detect(&launch, ROWS[i].wanted, ROWS[i].rendezvous, &err))
            fail_msg("%s (%s) is accepted", ROWS[i].settings, ROWS[i].wanted);
        if (strstr(err.message, ROWS[i].mention) == NULL)
            fail_msg("%s (%s): expected \"%s\" in: %s", ROWS[i].settings, ROWS[i].wanted, ROWS[i].mention,
                     err.message);
    }
    char *directory = xmalloc(2000), *address = xasprintf("RANK=0 WORLD_SIZE=2 MASTER_ADDR=%0300d", 0);
    memset(directory, 'd', 1999);
    directory[1999] = '\0';
    Launch launch;
    Error err;
    set_environment(address);
    assert_false(launch_detect(&launch, "auto", directory, &err));
    assert_non_null(strstr(err.message, "rendezvous: expected at most 1023 characters, found 1999"));
    assert_false(launch_detect(&launch, "auto", "", &err));
    assert_non_null(strstr(err.message, "MASTER_ADDR: expected at most 255 characters, found 300"));
    set_environment("");
    free(directory);
    free(address);
}

// After MPI_Init.
static void test_mpi_alone(void **state) {
    (void)state;
    static const struct {
        const char *settings;
        int world;
        bool ok;
    } ROWS[] = {
        {"OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1", 4, true},
        {"OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0", 1, true},
        {"PMIX_RANK=0", 1, true},  // the launcher does not state the number
        {"PMI_SIZE=2 PMI_RANK=1", 1, false},
        {"PMIX_RANK=1 SLURM_STEP_NUM_TASKS=2", 1, false},
        {"PMIX_RANK=1 SLURM_STEP_NUM_TASKS=2", 2, true},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; ++i) {
        set_environment(ROWS[i].settings);
        Launch launch;
        Error err = {""};
        assert_true(launch_detect(&launch, "mpi", "", &err));
        launch.world = ROWS[i].world;
        assert_int_equal(launch_check_mpi(&launch, &err), ROWS[i].ok);
        if (!ROWS[i].ok)
            assert_non_null(strstr(err.message, "expected the 2 processes that the launcher started, found 1"));
    }
    set_environment("");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_mpi_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
