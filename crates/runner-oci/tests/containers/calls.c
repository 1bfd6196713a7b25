/* Makes system calls that a container may not make, and prints what came of each: name and error number. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static void told(const char *name, long answer) { printf("%s %d\n", name, answer < 0 ? errno : 0); }

#define CALL(name, ...) told(#name, syscall(SYS_##name, ##__VA_ARGS__))

/* A child that was made is ended; it is one of clone, so it returns here as well. */
static void cloned(const char *name, long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    told(name, pid);
}

int main(void) {
    long own = open("/proc/self/ns/net", O_RDONLY);
    char buffer[512] = {0};
    CALL(mount, "none", "/tmp", "tmpfs", 0, 0);
    CALL(umount2, "/data", 0);
    CALL(pivot_root, "/", "/tmp");
    CALL(chroot, "/tmp");
    CALL(fsopen, "tmpfs", 0);
    CALL(open_tree, -100, "/", 1);
    CALL(unshare, CLONE_NEWUSER);
    CALL(unshare, CLONE_NEWNS);
    CALL(setns, own, 0);
    CALL(clone3, buffer, 88);
    cloned("clone_user", CLONE_NEWUSER);
    cloned("clone_net", CLONE_NEWNET);
    cloned("clone", 0);
    CALL(ptrace, 0, 0, 0, 0);
    CALL(process_vm_readv, getpid(), 0, 0, 0, 0, 0);
    CALL(pidfd_getfd, 0, 0, 0);
    CALL(kcmp, 1, 1, 0, 0, 0);
    CALL(keyctl, 0, -3, 0);
    CALL(add_key, "user", "name", "value", 5, -3);
    CALL(request_key, "user", "name", 0, -3);
    CALL(bpf, 0, buffer, 64);
    CALL(perf_event_open, buffer, 0, -1, -1, 0);
    CALL(userfaultfd, 1);
    CALL(io_uring_setup, 1, buffer);
    CALL(open_by_handle_at, own, buffer, 0);
    CALL(init_module, buffer, 1, "");
    CALL(kexec_load, 0, 0, 0, 0);
    CALL(reboot, 0, 0, 0, 0);
    CALL(swapon, "/data/x", 0);
    CALL(syslog, 10, 0, 0);
    CALL(sethostname, "x", 1);
    CALL(settimeofday, 0, 0);
    CALL(quotactl, 0, 0, 0, 0);
    CALL(personality, 0x0040000);
    CALL(personality, 0xffffffff);
    CALL(mknodat, -100, "/data/disk", 060600, 0xfe00);
    CALL(mknodat, -100, "/data/fifo", 010600, 0);
    told("socket_unix", syscall(SYS_socket, 1, 1, 0));
    told("socket_inet", syscall(SYS_socket, 2, 1, 0));
    told("socket_inet6", syscall(SYS_socket, 10, 1, 0));
    told("socket_netlink", syscall(SYS_socket, 16, 3, 0));
    told("socket_packet", syscall(SYS_socket, 17, 3, 0));
    told("socket_alg", syscall(SYS_socket, 38, 5, 0));
    told("socket_vsock", syscall(SYS_socket, 40, 1, 0));
    told("socket_high_bits", syscall(SYS_socket, 0x100000000L | 40, 1, 0));
    told("unknown", syscall(1023));
#ifdef __x86_64__
    /* The same by the 32-bit door: mount is 21, getpid 20. */
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(21), "b"(0L), "c"(0L), "d"(0L), "S"(0L), "D"(0L) : "memory");
    printf("mount_32 %ld\n", -answer);
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(20) : "memory");
    printf("getpid_32 %d\n", answer == getpid() ? 0 : -1);
#endif
    return 0;
}
