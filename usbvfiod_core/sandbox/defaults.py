"""The system calls that every server makes: the interpreter's, the C library's, the loop's and the sockets'. Whoever
declares nothing gets along with these."""

from __future__ import annotations

from typing import Final

_CALLS: Final = """
# memory; code that is loaded on demand is mapped executable
brk mmap munmap mremap mprotect madvise membarrier mincore msync
# threads, their locks and their end; clone, clone3, prctl, prlimit64 and tgkill are as the filter has them
futex set_robust_list get_robust_list rseq set_tid_address gettid getpid getppid sched_yield sched_getaffinity exit
exit_group restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack rt_sigpending tgkill arch_prctl
# time and randomness
clock_gettime clock_getres gettimeofday time nanosleep clock_nanosleep getrandom getitimer setitimer timerfd_create
timerfd_settime timerfd_gettime
# what one may ask
uname getuid geteuid getgid getegid getresuid getresgid getgroups getrusage times sysinfo getcpu sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min capget
# descriptors; fcntl is as the filter has it
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range dup dup2 dup3 fcntl lseek
fstat fsync fdatasync sync_file_range ftruncate fallocate fadvise64 readahead copy_file_range flock pipe pipe2 eventfd
eventfd2 memfd_create splice fchmod fchown fgetxattr fstatfs
# the kernel signals eventfds by these (vfio_user/signalling)
io_setup io_submit io_getevents
# waiting
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 signalfd4
inotify_init1 inotify_add_watch inotify_rm_watch
# names; which of them can be opened is Landlock's
open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64
getcwd statfs unlink unlinkat mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat chmod fchmodat
umask utimensat
# sockets; which can be made is in the filter
socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt shutdown sendto recvfrom
sendmsg recvmsg sendmmsg recvmmsg
"""
DEFAULT_CALLS: Final = frozenset(
    name for line in _CALLS.splitlines() if not line.startswith("#") for name in line.split()
)

DEFAULT_IOCTLS: Final = frozenset(
    {
        0x5401,  # TCGETS: whether what is opened is a terminal, which Python asks of every file
        0x5411,  # TIOCOUTQ: whether a client has read what a server that has crashed had sent
        0x5413,  # TIOCGWINSZ, likewise
        0x541B,  # FIONREAD
        0x5421,  # FIONBIO
        0x5450,  # FIONCLEX
        0x5451,  # FIOCLEX
    }
)
