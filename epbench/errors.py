"""Errors that are a person's to solve; everything else is a bug of epbench and may show a traceback.

The tree, with the exit code that the command line turns each into::

    EpbenchError                 2
    ├── ScenarioError            2   a scenario file or an option says something impossible
    │   └── LayoutError          2   a layout slug or a set of degrees is malformed
    ├── CheckpointError          2   a directory of weights is missing, damaged or of another model
    ├── RunError                 2   a run directory is missing, incomplete or of another schema
    ├── NotComparableError       4   two sides of a comparison that say nothing of each other
    └── UnfitMachineError        6   the machine cannot run or measure what was asked
        └── StorageError         6   a file cannot be written: the disk is full or fails, or the right is missing

Each message says what is wrong, where, and what to do about it, in one sentence a person can act on.
"""

__all__ = [
    "CheckpointError",
    "EpbenchError",
    "LayoutError",
    "NotComparableError",
    "RunError",
    "ScenarioError",
    "StorageError",
    "UnfitMachineError",
]


class EpbenchError(Exception):
    """Base of all errors that are shown to a person as one sentence."""

    exit_code = 2


class ScenarioError(EpbenchError):
    """A scenario file, or an option that changes one, cannot be used."""


class LayoutError(ScenarioError):
    """A layout is malformed (not merely illegal for a model: that is a ``skipped`` row)."""


class CheckpointError(EpbenchError):
    """A checkpoint directory cannot be read, or holds another model than the one to fill."""


class RunError(EpbenchError):
    """A run directory cannot be read, continued or compared."""


class NotComparableError(EpbenchError):
    """Two sides of a comparison differ in something that forbids it; the sentence names every such thing."""

    exit_code = 4


class UnfitMachineError(EpbenchError):
    """This machine cannot run or measure what was asked."""

    exit_code = 6


class StorageError(UnfitMachineError):
    """A file cannot be written; what was finished before it is whole."""
