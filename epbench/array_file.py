"""NumPy arrays that a person names, mapped into memory and never read whole; or one sentence why not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from epbench.errors import ScenarioError
from epbench.files import refuse_irregular
from epbench.wording import place

if TYPE_CHECKING:
    import numpy as np

__all__ = ["open_integers"]


def open_integers(path: Path | str, *, what: str, ndim: int) -> "np.ndarray[Any, Any]":
    """The array in a .npy file, mapped; raises ScenarioError if it is not ``ndim`` dimensions of integers.

    ``what`` the integers are, for the sentence: "token ids".
    """
    from tokenize import TokenError

    import numpy as np
    from numpy.lib.format import open_memmap

    try:
        refuse_irregular(Path(path), error=ScenarioError)
        with np.errstate(over="ignore"):  # of a length that no file has
            array: np.ndarray[Any, Any] = open_memmap(path, mode="r")
    except OSError as error:
        raise ScenarioError(f"{place(path)}: cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    except (ValueError, OverflowError, TokenError):  # the header is parsed as Python
        raise ScenarioError(f"{place(path)}: is not a NumPy array of {what} (numpy.save writes one)") from None
    if array.ndim != ndim or array.dtype.kind not in "iu":
        wanted = "one dimension" if ndim == 1 else f"{ndim} dimensions"
        found = f"{array.ndim} dimensions of {array.dtype}"
        raise ScenarioError(f"{place(path)}: {what} must be {wanted} of integers, not {found}")
    return array
