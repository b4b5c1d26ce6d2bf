"""Takes rights away from this process, by level; nothing gives them back."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from maft.sandbox import filters
from maft.sandbox.limits import BUBBLEWRAP, LANDLOCK, LIMITS, NAMESPACES, Limits
from maft.sandbox.process import forbid

NOBODY = 65534

_NEW_NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mounts, processes, net, IPC, name
_NEW_USER = 0x10000000
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2


@cache
def readable() -> tuple[str, ...]:
    """Return what a program may read: Python's standard library and the system's libraries."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix})}
    own |= {str(path) for path in Path(sys.base_prefix, "lib").glob("libpython*")}
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
    resolved = {os.path.realpath(path) for path in own} | {path for path in system if os.path.exists(path)}
    return tuple(sorted(resolved))


def limit(limits: Limits) -> None:
    """Limit CPU time, memory, files and core dumps of this process."""
    import resource

    for name, number in (
        ("CPU", limits.cpu_seconds),
        ("AS", limits.memory_mb << 20),
        ("FSIZE", limits.scratch_mb << 20),
        ("NOFILE", limits.num_files),
        ("CORE", 0),
        ("MSGQUEUE", 0),
    ):
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (number, number))


def program(level: str, limits: Limits, root: str) -> None:
    """Confine the process of a program; at level `namespaces` it goes on in a child.

    Args:
        level: see `limits.LEVELS`.
        limits: what it may use.
        root: an empty folder, on which a file system is mounted that no other process sees.

    Raises:
        OSError: this level is not to be had here.
    """
    if level == NAMESPACES:
        _namespaces(limits, root)
    if level in (LANDLOCK, BUBBLEWRAP):
        filters.read_only_beneath(path for path in readable() if os.path.exists(path))
    if level == LIMITS:
        _weakly()
    elif os.geteuid() == 0:
        filters.drop_capabilities()
    limit(limits)
    if level != LIMITS:
        filters.forbid_calls(may_write=level == NAMESPACES)


def reader() -> None:
    """Confine a worker of ours that reads what a model wrote: no network, processes or writing, where possible."""
    with suppress(OSError):
        filters.forbid_calls(may_write=False)


def _weakly() -> None:
    """Take away what can be taken away without the kernel's filters."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        if os.geteuid() == 0:  # root has no limit on processes
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.addaudithook(forbid)


def _namespaces(limits: Limits, root: str) -> None:
    """Enter namespaces of its own, with a file system that holds Python and an empty scratch folder."""
    is_root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), what)

    done(libc.unshare(_NEW_NAMESPACES | (0 if is_root else _NEW_USER)), "unshare")
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    child = os.fork()
    if child:
        os.closerange(0, 256)
        _, status = os.waitpid(child, 0)
        os._exit(min(255, os.waitstatus_to_exitcode(status)) & 0xFF)
    done(libc.prctl(1, signal.SIGKILL, 0, 0, 0), "prctl")
    mount = libc.mount
    mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    done(mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "mount /")
    options = f"size={limits.scratch_mb}m,nr_inodes=4096,mode=755".encode()
    done(mount(b"none", root.encode(), b"tmpfs", 2 | 4, options), "mount tmpfs")  # no setuid programs, no devices
    for path in (*readable(), "/dev/null"):
        target = Path(root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        done(mount(path.encode(), bytes(target), None, _BIND | _RECURSIVE, None), f"mount {path}")
        if path != "/dev/null":
            read_only = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)
            filters.call(442, -100, bytes(target), 0x8000, ctypes.byref(read_only), ctypes.c_size_t(32))
    scratch = Path(root, "tmp")
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)
    os.chdir(root)
    filters.call(_PIVOT_ROOT[os.uname().machine], b".", b".")
    done(libc.umount2(b".", _DETACH), "umount")
    os.chdir("/tmp")
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        filters.drop_capabilities()


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

BUBBLEWRAP_ARGUMENTS = ("--unshare-all", "--die-with-parent", "--dev", "/dev", "--tmpfs", "/tmp", "--clearenv")


def bubblewrapped(command: Sequence[str], variables: Mapping[str, str], also: Sequence[str]) -> list[str]:
    """Return a command that runs another one in bubblewrap, with Python and `also` to read."""
    environment = [part for name, value in variables.items() for part in ("--setenv", name, value)]
    bound = [
        part for path in (*readable(), os.path.realpath(sys.executable), *also) for part in ("--ro-bind", path, path)
    ]
    return [shutil.which("bwrap") or "bwrap", *BUBBLEWRAP_ARGUMENTS, *environment, *bound, *command]
