"""A package's public names, each imported when it is first used."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from sys import modules
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: its name, ``__name__``.
        homes: by submodule, the public names that it defines; a submodule that is public itself
            has an empty list.
    """
    where = {name: module for module, names in homes.items() for name in names}
    submodules = [module for module, names in homes.items() if not names]

    def find(name: str) -> Any:
        if name in where:
            value = getattr(import_module(f"{package}.{where[name]}"), name)
        elif name in submodules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(modules[package], name, value)
        return value

    public = [*where, *submodules]
    return find, lambda: sorted([*vars(modules[package]), *public]), public
