"""What the kernel refuses this process from now on: system calls (seccomp) and files (Landlock).

Both can be taken on without privileges, hold for all threads and children, and can never be taken off again.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Iterable
from typing import Any

# What a Python program needs that computes, reads files and has threads; everything else fails with EPERM.
_ALLOWED = """
read readv pread64 preadv write writev close lseek fstat stat lstat newfstatat fstatat64 statx access faccessat
faccessat2 readlink readlinkat getdents64 getcwd fcntl dup dup2 dup3 pipe pipe2 poll ppoll select pselect6
epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 statfs fstatfs chdir fchdir umask mmap munmap mprotect mremap
madvise brk mincore msync membarrier rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
rt_sigsuspend sigaltstack pause futex set_robust_list get_robust_list rseq set_tid_address sched_yield
sched_getaffinity sched_getparam sched_getscheduler getcpu arch_prctl clock_gettime clock_getres clock_nanosleep
nanosleep gettimeofday time getitimer setitimer alarm times getrusage getpid gettid getppid getuid geteuid getgid
getegid getresuid getresgid getgroups getpgrp getpgid getsid uname sysinfo getrandom restart_syscall exit exit_group
wait4 waitid
"""

_FILE_MAKERS = """
mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 link linkat symlink symlinkat truncate ftruncate fsync
fdatasync pwrite64 pwritev chmod fchmod fchmodat utimensat fallocate creat copy_file_range sendfile
"""

_TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX
_CLONE_THREAD = 0x10000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQ, _MASKED_EQ = 4, 7


class _Compare(ctypes.Structure):
    """A condition on an argument of a system call, `scmp_arg_cmp` of libseccomp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@functools.cache
def _library() -> Any:
    """Return libseccomp.

    Raises:
        OSError: it is not installed.
    """
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare)),
    ]
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = [ctypes.c_void_p]
    return library


def forbid_calls(*, may_write: bool) -> None:
    """Allow this process to compute, to read files and to have threads: no processes, network, signals to others.

    Args:
        may_write: files may be written, as far as something else allows it.

    Raises:
        OSError: the kernel or libseccomp cannot do it.
    """
    library = _library()
    rules = library.seccomp_init(_ERRNO | errno.EPERM)
    if not rules:
        raise OSError(errno.ENOSYS, "libseccomp does not work here")

    def rule(action: int, name: str, *conditions: tuple[int, int, int, int]) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # this architecture or this libseccomp does not know it
        compared = (_Compare * len(conditions))(*(_Compare(*condition) for condition in conditions))
        failed = library.seccomp_rule_add_array(rules, action, number, len(conditions), compared)
        if failed:
            raise OSError(-failed, f"no rule for {name}")

    try:
        for name in (_ALLOWED + (_FILE_MAKERS if may_write else "")).split():
            rule(_ALLOW, name)
        for name, place in (("open", 1), ("openat", 2)):
            rule(_ALLOW, name, *([] if may_write else [(place, _MASKED_EQ, _WRITES, 0)]))
        for request in _TERMINAL_QUESTIONS:
            rule(_ALLOW, "ioctl", (1, _EQ, request, 0))
        rule(_ALLOW, "clone", (0, _MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
        rule(_ERRNO | errno.ENOSYS, "clone3")  # its flags cannot be read; the C library then takes clone
        rule(_ALLOW, "prlimit64", (0, _EQ, 0, 0))
        for name in ("kill", "tgkill"):
            rule(_ALLOW, name, (0, _EQ, os.getpid(), 0))
        if failed := library.seccomp_load(rules):
            raise OSError(-failed, os.strerror(-failed))
    finally:
        library.seccomp_release(rules)


# Landlock. The numbers of its calls are the same on all architectures.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (to map a library), read a file, list a folder
_READ_OF_FILE = 1 << 0 | 1 << 2
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def call(number: int, *arguments: Any) -> int:
    """Make a system call by its number.

    Raises:
        OSError: it failed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    result: int = library.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def no_new_privileges() -> None:
    """Let nothing that this process starts have more rights than it has."""
    if ctypes.CDLL(None, use_errno=True).prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def read_only_beneath(paths: Iterable[str]) -> None:
    """Let this process read beneath these paths, and have no other file, whether to read or to write.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = call(_CREATE, None, ctypes.c_size_t(0), 1)
    rules = _Ruleset(
        files=_FILE_RIGHTS.get(version, _FILE_RIGHTS[5]),
        network=3 if version >= 4 else 0,  # bind and connect
        scoped=3 if version >= 6 else 0,  # abstract sockets and signals
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    for path in paths:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = _READ if os.path.isdir(path) else _READ_OF_FILE
        call(_ADD, ruleset, 1, ctypes.byref(_Beneath(rights, handle)), 0)
        os.close(handle)
    no_new_privileges()
    call(_RESTRICT, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """Give up every privilege of root, for good."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(Header(0x20080522, 0)), ctypes.byref(nothing)):
        raise OSError(ctypes.get_errno(), "capset")
