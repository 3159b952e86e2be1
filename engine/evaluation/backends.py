"""Implementations of COCO's evaluation: pycocotools, and faster-coco-eval if it is installed."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pycocotools.cocoeval import COCOeval

# Its figures are compared with those of pycocotools from this version on.
MIN_FASTER = (1, 7)


def coco_eval_class(backend: str = "auto") -> type[Any]:
    """Return the class with the interface of `COCOeval` for `eval.backend`.

    Note: faster-coco-eval has the accumulated figures alone. Matches of each image need pycocotools.

    Args:
        backend: "pycocotools", "faster_coco_eval", or "auto" for faster-coco-eval if it can be used.

    Raises:
        ValueError: if faster-coco-eval is asked for and cannot be used.
    """
    if backend == "pycocotools":
        return COCOeval
    problem = _faster_problem()
    if problem is None:
        from faster_coco_eval import COCOeval_faster

        return COCOeval_faster
    if backend == "auto":
        return COCOeval
    raise ValueError(f"eval.backend faster_coco_eval cannot be used: {problem}; pip install faster-coco-eval")


def describe_backend(backend: str) -> str:
    """Return the name and the version of the library that `eval.backend` selects; raises as `coco_eval_class`."""
    name = "pycocotools" if coco_eval_class(backend) is COCOeval else "faster-coco-eval"
    return f"{name} {version(name)}"


@cache
def _faster_problem() -> str | None:
    """Return why faster-coco-eval cannot be used, or None."""
    try:
        found = version("faster-coco-eval")
    except PackageNotFoundError:
        return "it is not installed"
    if tuple(int(part) for part in found.split(".")[:2] if part.isdecimal()) < MIN_FASTER:
        return f"version {'.'.join(map(str, MIN_FASTER))} or later is required, got {found}"
    try:
        import faster_coco_eval  # noqa: F401
    except Exception as error:  # of compiled code: an ImportError, or a ValueError for another NumPy
        return f"its import failed ({type(error).__name__}: {error})"
    return None
