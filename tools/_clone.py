"""Makes the tools work from a plain clone: import path, check of torchvision, errors without a traceback."""

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def _end_at_once(number: int, frame: object) -> None:
    """End the process on Ctrl-C, where nothing has to be saved: within an import, an exception can be lost."""
    with contextlib.suppress(OSError):
        os.write(2, b"\nstopped by the user\n")
    os._exit(1)


# not if the process that started this one ignores Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)


def _open_standard_files() -> None:
    """Open stdin, stdout and stderr on nothing if they are closed: the next file would take their place."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


_open_standard_files()

USER_ERROR = 2
_HOW_TO_RESUME = {"train": "; resume with --resume auto", "download_coco": "; run the same command again to resume"}
_MISMATCH = """torch {torch} and torchvision {torchvision} do not match: {problem}.
PyPI has a CUDA pair, PyTorch's CPU index a CPU pair. Install both packages from the same index:
  pip install --force-reinstall torch torchvision
  pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu
The second is smaller and CPU-only."""


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def check_torchvision() -> None:
    """Exit with an explanation if torchvision's operators do not match the installed torch."""
    problem = None
    try:
        import torch
        import torchvision.ops  # noqa: F401 - loads the operators

        if torch.cuda.is_available() and torch.ops.torchvision._cuda_version() == -1:
            problem = "torch sees a GPU, but this torchvision was built for the CPU only"
    except ModuleNotFoundError as error:
        print(f"{error}; install the requirements: pip install -r {ROOT / 'requirements.txt'}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except (RuntimeError, ImportError, AttributeError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        print(
            _MISMATCH.format(torch=_version("torch"), torchvision=_version("torchvision"), problem=problem),
            file=sys.stderr,
        )
        raise SystemExit(USER_ERROR)


def _show_warning(message: Warning | str, category: type, filename: str, lineno: int, *stream: object) -> None:
    """Print a deprecation in one line and once for all processes; other warnings as Python does."""
    if category is not FutureWarning or not Path(filename).is_relative_to(ROOT) or "site-packages" in filename:
        _print_error(warnings.formatwarning(message, category, filename, lineno).rstrip("\n"))
    elif _rank() == "0":
        _print_error(f"warning: {message}")


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _print_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def run(main: Callable[[], None], *, distributed: bool = False) -> None:
    """Run a tool's `main`: a user's error ends with a message and exit code 2, any other error with 1.

    A user's error is a `ValueError` raised by this project's checks, or a file that cannot be read or written. A loss
    that is not finite and a dead process have no traceback either. A bug has one. The work does not end if stdout
    cannot be written; the exit code is 1 then, except if the reader closed it.

    Args:
        main: the tool's function.
        distributed: whether several processes of a launcher may run the tool together.
    """
    from engine.display import safe_outputs

    warnings.showwarning, sys.excepthook = _show_warning, _show_traceback
    with safe_outputs() as (stdout, _):
        try:
            _run(main, distributed)
        finally:
            stdout.flush()
            if stdout.lost:
                _print_error(f"error: a part of the output was lost, because stdout cannot be written: {stdout.lost}")
        if stdout.lost:
            raise SystemExit(1)


def _run(main: Callable[[], None], distributed: bool) -> None:
    from data import WorkerError
    from engine.distributed import LostProcessError, OtherProcessError, check_single_process

    can_interrupt = signal.getsignal(signal.SIGINT) is _end_at_once
    try:
        if can_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not distributed:
            check_single_process()
        main()
    except OtherProcessError:
        raise SystemExit(1) from None  # the other process reports the error
    except (ValueError, OSError) as error:
        if not (isinstance(error, OSError) or _is_ours(error)):
            raise
        _report(error)
        raise SystemExit(USER_ERROR) from None
    except (FloatingPointError, WorkerError, LostProcessError) as error:
        _report(error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if _rank() == "0":
            hint = _HOW_TO_RESUME.get(Path(sys.argv[0]).stem, "")
            _print_error(f"\nstopped by the user{hint}")
        raise SystemExit(1) from None
    finally:
        if can_interrupt:  # for a second Ctrl-C, and one during the exit
            signal.signal(signal.SIGINT, _end_at_once)


def _report(error: Exception) -> None:
    process = "" if _rank() == "0" else f"process {_rank()}: "
    _print_error(f"{process}error: {_message(error)}")


def _print_error(text: str) -> None:
    from engine.display import for_people

    print(for_people(text), file=sys.stderr)


def _rank() -> str:
    """Rank of this process under torchrun."""
    rank = os.environ.get("RANK", "0")
    return rank if rank.isdecimal() else "0"


def _is_ours(error: ValueError) -> bool:
    """Whether this project raised the error, here or in a worker process of a loader, and not a library."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    in_clone = raised_in.is_relative_to(ROOT) and "site-packages" not in raised_in.parts
    return in_clone or type(error).__module__.split(".")[0] in ("data", "models", "engine", "dcn")


def _message(error: Exception) -> str:
    # torch prefixes the message of a worker with the whole traceback
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


check_torchvision()
