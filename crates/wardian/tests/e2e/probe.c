/* Tries system calls and prints "what errno" a line; 0: it has succeeded. Each is tried in a child of its own. With the
 * argument "all" every number is tried as well. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long *answer;

#ifdef __x86_64__
/* As a 32-bit program would call. */
static long call32(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}
#endif

static void try(const char *name, int wide, long number, long a, long b, long c, long d, long e) {
    pid_t child;
    *answer = -1;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        long result;
        pid_t me = getpid();
        alarm(5);
#ifdef __x86_64__
        if (!wide) {
            result = call32(number, a, b, c);
            errno = result < 0 ? -result : 0;
        } else
#endif
            result = syscall(number, a, b, c, d, e, -1L);
        /* A clone or fork has returned twice. */
        if (syscall(SYS_getpid) == me)
            *answer = result < 0 ? errno : 0;
        _exit(0);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    printf("%s %ld\n", name, *answer);
}

int main(int argc, char **argv) {
    static char params[4096];
    char name[32];
    long number;
    answer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (answer == MAP_FAILED)
        return 1;
    /* A namespace of the user's own, by every way. */
    try("unshare(user)", 1, SYS_unshare, 0x10000000, 0, 0, 0, 0);
    try("unshare(mount)", 1, SYS_unshare, 0x20000, 0, 0, 0, 0);
    try("clone(user)", 1, SYS_clone, 0x10000000 | SIGCHLD, 0, 0, 0, 0);
    try("clone(cgroup)", 1, SYS_clone, 0x02000000 | SIGCHLD, 0, 0, 0, 0);
    try("clone(thread-like)", 1, SYS_clone, SIGCHLD, 0, 0, 0, 0);
    try("clone3", 1, 435, (long)params, 88, 0, 0, 0);
    try("socket(vsock)", 1, SYS_socket, 40, 1, 0, 0, 0);
    try("socket(vsock, hidden)", 1, SYS_socket, 0x100000028, 1, 0, 0, 0);
    try("socket(alg)", 1, SYS_socket, 38, 5, 0, 0, 0);
    try("socket(local)", 1, SYS_socket, 1, 1, 0, 0, 0);
    try("socket(ipv4)", 1, SYS_socket, 2, 1, 0, 0, 0);
    try("socket(netlink)", 1, SYS_socket, 16, 3, 0, 0, 0);
    try("socketpair(local)", 1, SYS_socketpair, 1, 1, 0, (long)params, 0);
    try("keyctl(session)", 1, SYS_keyctl, 0, -3, 1, 0, 0);
    try("add_key", 1, SYS_add_key, (long)"user", (long)"wardian", (long)"x", 1, -2);
    try("request_key", 1, SYS_request_key, (long)"user", (long)"wardian", 0, 0, 0);
    try("io_uring_setup", 1, 425, 1, (long)params, 0, 0, 0);
    try("userfaultfd", 1, SYS_userfaultfd, 1, 0, 0, 0, 0);
    try("personality(query)", 1, SYS_personality, 0xffffffff, 0, 0, 0, 0);
    try("personality(no random)", 1, SYS_personality, 0x40000, 0, 0, 0, 0);
    try("syslog", 1, SYS_syslog, 10, 0, 0, 0, 0);
    try("kcmp", 1, SYS_kcmp, getpid(), getpid(), 0, 0, 0);
    try("membarrier", 1, SYS_membarrier, 0, 0, 0, 0, 0);
    try("pidfd_open", 1, 434, getpid(), 0, 0, 0, 0);
#ifdef __x86_64__
    try("32: getpid", 0, 20, 0, 0, 0, 0, 0);
    try("32: unshare(user)", 0, 310, 0x10000000, 0, 0, 0, 0);
    try("32: clone(user)", 0, 120, 0x10000000 | SIGCHLD, 0, 0, 0, 0);
    try("32: keyctl(session)", 0, 288, 0, -3, 1, 0, 0);
    try("32: socket(vsock)", 0, 359, 40, 1, 0, 0, 0);
    try("32: io_uring_setup", 0, 425, 1, 0, 0, 0, 0);
    try("x32: unshare(user)", 1, 0x40000000 | SYS_unshare, 0x10000000, 0, 0, 0, 0);
#endif
    if (argc < 2 || argv[1][0] != 'a')
        return 0;
    /* All of them, with arguments that nothing can be done with. */
    for (number = 0; number < 1024; number++) {
        /* They return nowhere, or wait, or write everybody's data to the disk. */
        if (number == SYS_rt_sigreturn || number == SYS_exit || number == SYS_exit_group || number == SYS_sync)
            continue;
#ifdef __x86_64__
        if (number == SYS_pause || number == SYS_fork || number == SYS_vfork)
            continue;
#endif
        snprintf(name, sizeof name, "%ld", number);
        try(name, 1, number, -1, -1, -1, -1, -1);
    }
    return 0;
}
