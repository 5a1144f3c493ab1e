"""torchmetrics, of which Lightning needs two classes, without all that it imports for the others.

`import torchmetrics` runs every metric that there is, and with them SciPy, transformers,
torchvision and Matplotlib wherever they are installed: half of the time until a command that
measures nothing begins. Here its package and its module of plots run when more of them is asked
for than those classes need. Then they run as ever: nothing of torchmetrics is missing or altered.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

_PACKAGE = "torchmetrics"
_PLOT = "torchmetrics.utilities.plot"


class _Waiting(ModuleType):
    """A module that runs once it is asked for a name that it was not given.

    Each has a lock of its own: with one for all a thread that runs the package, and waits for a
    part of it, would wait for ever for another one that imports this part, and asks for plots.
    """

    def __getattr__(self, name: str) -> Any:
        self.run()
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(self)[name]

    def run(self) -> None:
        """Run it, unless it has run, or does so right now, or is not ready to."""
        with vars(self)["_lock"]:
            if not vars(self).pop("_is_ready", False):
                return
            spec = self.__spec__
            assert spec is not None, "it was made from one"
            assert spec.loader is not None, "it is no folder without code"
            try:
                spec.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]  # as any other from now on
            finally:
                if type(self) is _Waiting:
                    vars(self)["_is_ready"] = True  # whoever asks next meets the same fault


def lighten_torchmetrics() -> None:
    """Import what Lightning needs of torchmetrics, and let the rest wait until it is asked for.

    For a process of our own, before Lightning is imported. Where torchmetrics is imported already
    nothing happens, and where it is not made as is known here all of it is imported.
    """
    spec = None if _PACKAGE in sys.modules else find_spec(_PACKAGE)
    if spec is None:
        return
    before = set(sys.modules)
    try:
        _lighten(spec)
    except Exception as error:  # noqa: BLE001 - of whatever kind, then all of it is imported
        log.debug("All of torchmetrics is imported, since its parts are not as expected: %s", error)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == _PACKAGE:
                del sys.modules[name]


def _lighten(spec: ModuleSpec) -> None:
    folders = [f"{folder}/utilities" for folder in spec.submodule_search_locations or ()]
    package, plot = _put_off(spec), _put_off(PathFinder.find_spec(_PLOT, folders))
    package["_logger"] = logging.getLogger(_PACKAGE)
    plot.update(_AX_TYPE=object, _PLOT_OUT_TYPE=object, plot_single_or_multi_val=_plot)
    utilities = import_module(f"{_PACKAGE}.utilities")  # first, as it and metrics import each other
    vars(utilities)["plot"] = sys.modules[_PLOT]
    package.update(
        __version__=import_module(f"{_PACKAGE}.__about__").__version__,
        Metric=import_module(f"{_PACKAGE}.metric").Metric,
        MetricCollection=import_module(f"{_PACKAGE}.collections").MetricCollection,
    )
    package["_is_ready"] = plot["_is_ready"] = True


def _put_off(spec: ModuleSpec | None) -> dict[str, Any]:
    """Make a module that others can import, but that does not run; its names."""
    if spec is None:
        raise ImportError(f"There is no {_PLOT}")
    module = module_from_spec(spec)
    vars(module)["_lock"] = RLock()
    module.__class__ = _Waiting
    sys.modules[spec.name] = module
    return vars(module)


def _plot(*values: Any, **options: Any) -> Any:
    """Draw metrics, by the function whose name this has until its module runs."""
    plot = sys.modules[_PLOT]
    if isinstance(plot, _Waiting):
        plot.run()
    return plot.plot_single_or_multi_val(*values, **options)
