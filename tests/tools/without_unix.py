"""Runs every tool's --help and a training without what Windows lacks, and prints what failed, by tool.

Arguments: the folder of the tools, a config, a run folder.
"""

import contextlib
import importlib
import io
import os
import runpy
import signal
import sys
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "pydantic", "yaml", "PIL.Image", "pycocotools.cocoeval", "jinja2", "scipy.stats")
MORE_LIBRARIES = ("matplotlib.pyplot", "torch.utils.tensorboard", "torch.distributed", "torch.export", "hypothesis")
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "posix")
FUNCTIONS = """
fork forkpty openpty getuid geteuid getgid getegid setsid killpg getpgid sysconf pread pwrite preadv pwritev statvfs
chown fchown lchown fchmod fchdir mkfifo mknod sched_getaffinity sched_setaffinity getloadavg nice register_at_fork
posix_fallocate posix_fadvise fdatasync sync pipe2 O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK O_SYNC O_DSYNC O_NOCTTY
"""
SIGNALS = """
SIGUSR1 SIGUSR2 SIGCHLD SIGHUP SIGKILL SIGALRM SIGPIPE SIGQUIT SIGTSTP SIGCONT SIGSTOP SIGWINCH SIGXCPU SIGBUS
alarm setitimer getitimer pthread_sigmask pthread_kill sigwait sigpending siginterrupt
"""


def take_away() -> None:
    """Remove modules, functions and signals; folders cannot be opened."""
    for name in (*LIBRARIES, *MORE_LIBRARIES):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules |= dict.fromkeys(MODULES)
    for module, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        for name in names.split():
            module.__dict__.pop(name, None)
    system_open = os.open

    def open_file(path: object, *arguments: object, **options: object) -> int:
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
            raise PermissionError(13, "Permission denied", path)
        return system_open(path, *arguments, **options)

    os.open = open_file


def run(tool: Path, *arguments: str) -> None:
    """Run a tool; print its output and error unless it exits with 0."""
    sys.argv, out = [str(tool), *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(str(tool), run_name="__main__")
    except SystemExit as end:
        if end.code:
            print(tool.name, "exit code", end.code, out.getvalue())
    except Exception as error:
        print(tool.name, repr(error), out.getvalue())


if __name__ == "__main__":
    folder, config, run_dir = sys.argv[1:]
    sys.path.insert(0, folder)
    take_away()
    tools = sorted(file for file in Path(folder).glob("*.py") if not file.name.startswith("_"))
    for tool in tools:
        run(tool, "--help")
    run(Path(folder, "train.py"), "--config", config, "--run-dir", run_dir, "train.epochs=1")
    print(len(tools), "tools")
