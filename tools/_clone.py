"""Lets the tools run from a plain clone: finds packages, checks torchvision, shows mistakes without a traceback."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MISTAKE = 2
_GOES_ON = {"train": "; it goes on by --resume auto", "download_coco": "; the same command goes on where it was"}
_MISMATCH = """torch {torch} and torchvision {torchvision} do not belong together: {problem}.
The wheels on PyPI are a CUDA pair, those of PyTorch's CPU index a CPU pair; torch of one and torchvision of the other
fail. Install both from one place:
  pip install --force-reinstall torch torchvision
  pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu
The second is smaller, and for the CPU only."""


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def check_torchvision() -> None:
    """Stop with an explanation where torchvision's operators do not fit the installed torch."""
    problem = None
    try:
        import torch
        import torchvision.ops  # noqa: F401 - loads the operators

        if torch.cuda.is_available() and torch.ops.torchvision._cuda_version() == -1:
            problem = "torch sees a GPU, but this torchvision was built for the CPU only"
    except ModuleNotFoundError as error:
        print(f"{error}; install what is needed: pip install -r {ROOT / 'requirements.txt'}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None
    except (RuntimeError, ImportError, AttributeError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        print(
            _MISMATCH.format(torch=_version("torch"), torchvision=_version("torchvision"), problem=problem),
            file=sys.stderr,
        )
        raise SystemExit(MISTAKE)


def _show_warning(message: Warning | str, category: type, filename: str, lineno: int, *stream: object) -> None:
    """Print a deprecation in one line and once for all processes; other warnings as Python does."""
    if category is not FutureWarning or not Path(filename).is_relative_to(ROOT) or "site-packages" in filename:
        print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr, end="")
    elif _rank() == "0":
        print(f"warning: {message}", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Run a tool's `main`: a user's mistake ends with a message and exit code 2, anything else with 1.

    A mistake is a `ValueError` raised by this project's own checks, or a file that cannot be read or written. What may
    befall a sound training (a loss that is not finite, a loader's worker that dies) needs no traceback either; a bug
    has one.
    """
    from data import WorkerError
    from engine.distributed import OtherProcessError

    warnings.showwarning = _show_warning
    try:
        main()
    except OtherProcessError:
        raise SystemExit(1) from None  # that one tells
    except (ValueError, OSError) as error:
        if not (isinstance(error, OSError) or _is_ours(error)):
            raise
        _complain(error)
        raise SystemExit(MISTAKE) from None
    except (FloatingPointError, WorkerError) as error:
        _complain(error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if _rank() == "0":
            hint = _GOES_ON.get(Path(sys.argv[0]).stem, "")
            print(f"\nstopped by the user{hint}", file=sys.stderr)
        raise SystemExit(1) from None


def _complain(error: Exception) -> None:
    process = "" if _rank() == "0" else f"process {_rank()}: "
    print(f"{process}error: {_message(error)}", file=sys.stderr)


def _rank() -> str:
    """Number of this process among those that torchrun started."""
    return os.environ.get("RANK", "0")


def _is_ours(error: ValueError) -> bool:
    """Whether the error was raised in this clone, or by it in a loader's worker process, and not by a library."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    in_clone = raised_in.is_relative_to(ROOT) and "site-packages" not in raised_in.parts
    return in_clone or type(error).__module__.split(".")[0] in ("data", "models", "engine", "dcn")


def _message(error: Exception) -> str:
    # torch puts the worker's whole traceback before the message of what a worker raised
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


check_torchvision()
