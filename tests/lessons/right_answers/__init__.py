"""Right answers to the exercises, written in other ways than the solutions: loops, einsum, other algebra, the project's own ops.

Every one must pass its check, or learners are told that they are wrong when they are not. A module for each of lessons/checks.
"""
import importlib
import pkgutil

RIGHT = {}
for _module in pkgutil.iter_modules(__path__):
    RIGHT |= importlib.import_module(f"{__name__}.{_module.name}").RIGHT
