// test_run_lock.c: one run at a time on a directory, whatever happens to the one before.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "llmc/run/run_lock.h"
#include "tests/support/file_test.h"

// A process that takes the lock, says so, and sleeps until it is killed.
static pid_t start_holder(const char *dir) {
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        RunLock lock;
        alarm(60);
        if (!run_lock_take(&lock, dir, 0, NULL) || write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char seen;
    close(ready[1]);  // then a child that failed is seen as the end of the pipe
    assert_int_equal(read(ready[0], &seen, 1), 1);
    close(ready[0]);
    return child;
}
static void stop_holder(pid_t child) {
    int status;
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
}

static void test_second_run_is_refused(void **state) {
    FileTest *t = *state;
    char *dir = file_test_path(t, "runs/a"), *other = file_test_path(t, "runs/b");
    pid_t holder = start_holder(dir);
    RunLock lock;
    char mention[64], host[64] = "";
    file_test_expect_error(t, run_lock_take(&lock, dir, 0, &t->err), "runs/a: another run is using this directory");
    assert_false(run_lock_take(&lock, dir, 0.25, &t->err));
    assert_int_equal(lock.fd, -1);
    snprintf(mention, sizeof mention, "pid %ld, since 20", (long)holder);
    assert_non_null(strstr(t->err.message, mention));
    assert_int_equal(gethostname(host, sizeof host - 1), 0);
    assert_non_null(strstr(t->err.message, host));
    // Another directory is another matter.
    file_test_expect_ok(t, run_lock_take(&lock, other, 0, &t->err));
    assert_string_equal(lock.note, "");
    run_lock_release(&lock);
    // However it ends, the next one may begin, and is then the one that is named.
    stop_holder(holder);
    file_test_expect_ok(t, run_lock_take(&lock, dir, 0, &t->err));
    RunLock second;
    assert_false(run_lock_take(&second, dir, 0, &t->err));
    snprintf(mention, sizeof mention, "pid %ld, since 20", (long)getpid());
    file_test_expect_error(t, false, mention);
    run_lock_release(&lock);
    file_test_expect_ok(t, run_lock_take(&second, dir, 0, &t->err));
    run_lock_release(&second);
    run_lock_release(&second);
    free(dir);
    free(other);
}

// One that is on its way out is waited for.
static void test_waiting(void **state) {
    FileTest *t = *state;
    pid_t holder = start_holder(t->dir), killer = fork();
    assert_true(killer >= 0);
    if (killer == 0) {
        usleep(300000);
        _exit(kill(holder, SIGKILL));
    }
    RunLock lock;
    file_test_expect_ok(t, run_lock_take(&lock, t->dir, 30, &t->err));
    run_lock_release(&lock);
    int status;
    assert_int_equal(waitpid(killer, &status, 0), killer);
    assert_int_equal(waitpid(holder, &status, 0), holder);
}

static void test_odd_places(void **state) {
    FileTest *t = *state;
    RunLock lock;
    file_test_write(t, "file", "x", 1);
    char *path = file_test_path(t, "file");
    file_test_expect_error(t, run_lock_take(&lock, path, 0, &t->err), "cannot create directory");
    free(path);
    path = file_test_path(t, RUN_LOCK_FILE);
    assert_int_equal(mkdir(path, 0755), 0);
    file_test_expect_error(t, run_lock_take(&lock, t->dir, 0, &t->err), ".lock: cannot open");
    assert_int_equal(lock.fd, -1);
    assert_int_equal(rmdir(path), 0);
    // What another program wrote there is no reason to refuse, and does not reach the terminal.
    file_test_write(t, RUN_LOCK_FILE, "\033[2Jx", 5);
    file_test_expect_ok(t, run_lock_take(&lock, t->dir, 0, &t->err));
    assert_int_equal(ftruncate(lock.fd, 0), 0);
    assert_int_equal(pwrite(lock.fd, "\033[2Jx", 5, 0), 5);
    RunLock second;
    file_test_expect_error(t, run_lock_take(&second, t->dir, 0, &t->err), ": ?[2Jx; wait");
    run_lock_release(&lock);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_second_run_is_refused), FILE_TEST(test_waiting),
                                       FILE_TEST(test_odd_places)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
