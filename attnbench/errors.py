"""The one exception a user may see as a message: everything else is a defect of attnbench."""


class BadInput(Exception):
    """Something the user gave cannot be used. Its text is shown alone and the command exits with 2.

    The text names the file, the key, the value and what is allowed, and ends with what to do.
    """
