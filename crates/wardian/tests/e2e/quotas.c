/* Uses up what the kernel counts for a user. `KIND all`: as much as there is, says how much, and keeps it; `KIND one`:
 * whether there is any left. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <unistd.h>

static int inotify(int n) {
    (void)n;
    return inotify_init1(0);
}

static int mqueue(int n) {
    char name[32];
    snprintf(name, sizeof name, "/probe-%d-%d", getpid(), n);
    int queue = mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
    /* It lives while it is open. */
    if (queue >= 0)
        mq_unlink(name);
    return queue;
}

static int signals(int n) {
    union sigval value = {.sival_int = n};
    return sigqueue(getpid(), SIGRTMIN, value);
}

static int shmlock(int n) {
    (void)n;
    int id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
    int locked = id < 0 ? -1 : shmctl(id, SHM_LOCK, NULL), error = errno;
    if (locked < 0 && id >= 0)
        shmctl(id, IPC_RMID, NULL);
    errno = error;
    return locked;
}

/* A pipe as large as others have by default. */
static int pipes(int n) {
    (void)n;
    int fds[2];
    if (pipe(fds) < 0)
        return -1;
    if (fcntl(fds[0], F_GETPIPE_SZ) >= 65536)
        return 0;
    errno = EDQUOT;
    return -1;
}

/* Descriptors that are on their way through a socket. */
static int inflight(int n) {
    static int pair[2];
    if (n % 64 == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        return -1;
    int fds[250];
    for (int i = 0; i < 250; i++)
        fds[i] = 1;
    char control[CMSG_SPACE(sizeof fds)] = {0}, byte = 0;
    struct iovec text = {&byte, 1};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(head), fds, sizeof fds);
    return sendmsg(pair[0], &message, MSG_DONTWAIT) < 0 ? -1 : 0;
}

/* A nested user namespace, and with it the others. */
static int userns(int n) {
    (void)n;
    return unshare(CLONE_NEWUSER);
}

/* Every process makes more. */
static int forks(int n) {
    (void)n;
    while (fork() >= 0 || usleep(20000) == 0)
        ;
    return -1;
}

static const struct {
    const char *name;
    int (*take)(int);
} kinds[] = {{"inotify", inotify}, {"mqueue", mqueue},     {"sigpending", signals}, {"shmlock", shmlock},
             {"pipes", pipes},     {"inflight", inflight}, {"userns", userns},      {"forks", forks}};

int main(int argc, char **argv) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (unsigned i = 0; argc == 3 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(argv[1], kinds[i].name))
            continue;
        int most = strcmp(argv[2], "all") ? 1 : 1000000, taken = 0;
        while (taken < most && kinds[i].take(taken) >= 0)
            taken++;
        printf("%d %s\n", taken, taken < most ? strerror(errno) : "");
        fflush(stdout);
        if (most == 1)
            return taken == 0;
        for (;;)
            pause();
    }
    return 2;
}
