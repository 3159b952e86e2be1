"""A function of the user that receives the records of a run, for loggers that this project does not have."""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.shown import shown

from ..display import log

Function = Callable[[dict[str, Any]], object]


class Callback:
    """Calls a function with each record. Its first exception becomes a warning, and none stops training.

    Args:
        function: function of `load_callback`, or None to do nothing, as in all processes but the main one.
    """

    def __init__(self, function: Function | None = None) -> None:
        self._function = function
        self._has_failed = False

    def __call__(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Call the function with `values`, "event" and "step". Numbers that are not finite are left out."""
        if self._function is None:
            return
        finite = {key: value for key, value in values.items() if type(value) is not float or math.isfinite(value)}
        try:
            self._function({"event": event, "step": step, **finite})
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                place = traceback.extract_tb(error.__traceback__)[-1]
                log.warning(
                    "train.callback failed in event %r of step %d: %s: %s (%s, line %d). Training continues, and later "
                    "failures are not reported",
                    event,
                    step,
                    type(error).__name__,
                    error,
                    place.filename,
                    place.lineno,
                )


def load_callback(name: str) -> Function:
    """Import the function of `train.callback`.

    Args:
        name: "module:function". Modules are searched in the installed packages and the working directory.

    Raises:
        ValueError: if the module or function is missing, the import fails, or the function does not take a record.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"train.callback {name}: module {error.name!r} was not found in the working directory {here} "
                "or in the installed packages"
            ) from None
        raise ValueError(
            f"train.callback {name}: the import of {module} failed: {type(error).__name__}: {error}"
        ) from None
    function = getattr(found, attribute, None)
    if not callable(function):
        functions = [key for key, value in vars(found).items() if inspect.isfunction(value)]
        raise ValueError(
            f"train.callback {name}: {getattr(found, '__file__', module)} has no function {attribute!r}; "
            f"its functions: {shown(functions)}"
        )
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        raise ValueError(f"train.callback {name}: the function must take one argument, the record: {error}") from None
    except ValueError:  # of compiled code, without a signature
        pass
    return function
