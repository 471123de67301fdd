"""Faults that tests bring about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Locks of files under $NO_LOCKS_UNDER are refused, as by a network file system without a lock daemon.
NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(int fd) {
    char link[64], path[PATH_MAX];
    const char *folder = getenv("NO_LOCKS_UNDER");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!folder || length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    errno = ENOLCK;
    return 1;
}

static int forward(const char *name, int fd, int command, void *argument) {
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
    int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    return locks && refused(fd) ? -1 : real(fd, command, argument);
}

#define FCNTL(name)                                 \
    int name(int fd, int command, ...) {            \
        va_list list;                               \
        va_start(list, command);                    \
        void *argument = va_arg(list, void *);      \
        va_end(list);                               \
        return forward(#name, fd, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int flock(int fd, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return refused(fd) ? -1 : real(fd, operation);
}
"""


def without_locks(folder: Path, build: Path) -> dict[str, str]:
    """Environment of processes for which `folder` lies on a file system without locks; skips without a C compiler.
    `build` is where the library goes that does so."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = build / "no_locks.c", build / "no_locks.so"
    source.write_text(NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "NO_LOCKS_UNDER": str(folder)}


def fill(folder: Path) -> Path:
    """Write a file until its file system is full; returns it, to be removed."""
    ballast = folder / "ballast"
    try:
        with ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return ballast
