"""Work whose result is only shown: an error in a figure, a histogram or a report ends nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from .progress import log

_warned: set[str] = set()


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Context for work that is only shown: an error becomes a warning, once for each `what`, and work continues.

    An `OSError` is raised: a disk that is full for a figure is full for everything.

    Args:
        what: what is shown, in the plural, such as "the figures of TensorBoard".
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if what not in _warned:
            _warned.add(what)
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            log.warning("%s cannot be drawn and are left out: %s", what, reason)
