"""The two ways this package speaks about bad input."""


class InputError(ValueError):
    """A user's input cannot be used; the message names the culprit and the way out."""


class InputWarning(UserWarning):
    """A user's input can be used, but probably not as the user believes."""
