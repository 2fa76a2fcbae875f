// emu_child.h: shared by the emulator's tests (tests/gpu/test_emu_*.cpp): cmocka for C++, and running part of a test in
// a child process, which may configure the emulated device differently, or crash it.
#ifndef TESTS_EMU_CHILD_H
#define TESTS_EMU_CHILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK(call) assert_int_equal((int)(call), 0)

struct Child {
    const char *name;
    void (*body)(void);
};
#define CHILD_ENTRY(body) \
    { #body, body }

// The stderr of the last child.
static char child_said[4096];
// Starts this program again for one entry of CHILDREN, with one environment setting ("NAME=value"); returns the exit
// status, or 128 + signal.
static int in_child(const char *setting, const char *child_name) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (setting != NULL) putenv((char *)setting);
        dup2(ends[1], STDERR_FILENO);
        execl("/proc/self/exe", "test_emu", child_name, (char *)NULL);
        _exit(99);
    }
    close(ends[1]);
    size_t said = 0;
    for (ssize_t got; (got = read(ends[0], child_said + said, sizeof child_said - 1 - said)) > 0;)
        said += (size_t)got;
    child_said[said] = '\0';
    for (char rest[256]; read(ends[0], rest, sizeof rest) > 0;) continue;
    close(ends[0]);
    int status = 0;
    assert_true(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
static void assert_child_said(const char *text) {
    if (strstr(child_said, text) == NULL) fail_msg("expected \"%s\" in: %s", text, child_said);
}
// In a child: exits with 1, where cmocka would jump into the parent's test.
#define CHILD(condition)            \
    do {                            \
        if (!(condition)) _exit(1); \
    } while (0)
// Call it first in main: in a process started by in_child it runs the requested part and does not return. (Leaks of
// such a part are not checked.)
template <size_t N>
static void run_if_child(const Child (&children)[N], int argc, char **argv) {
    if (argc == 1) return;
    for (const Child &child : children)
        if (strcmp(argv[1], child.name) == 0) {
            child.body();
            _exit(0);
        }
    _exit(98);
}

#endif
