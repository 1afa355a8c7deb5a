"""The two ways this package speaks about bad input."""

from __future__ import annotations

import inspect
import os
import traceback
import warnings
from pathlib import Path

_HERE = f"{Path(__file__).parent}{os.sep}"


class InputError(ValueError):
    """A user's input cannot be used; the message names the culprit and the way out."""


class InputWarning(UserWarning):
    """A user's input can be used, but probably not as the user believes."""


def warn(message: str) -> None:
    """Warn at the line that called this package, however deep within it the cause is found.

    Parameters
    ----------
    message
        What may not be as the user believes.
    """
    frames = traceback.walk_stack(inspect.currentframe())
    ours = [depth for depth, (frame, _) in enumerate(frames, 1) if frame.f_code.co_filename.startswith(_HERE)]
    warnings.warn(message, InputWarning, stacklevel=max(ours) + 1)
