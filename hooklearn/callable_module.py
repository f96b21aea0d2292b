"""``hl.locate(...)`` and ``hooklearn.locate.collect``: a package that is also the verb it is named for.

Importing a subpackage makes it an attribute of its parent, which would hide the function of the same name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that forwards a call to its member of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    sys.modules[name].__class__ = CallableModule
