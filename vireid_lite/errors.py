"""What goes wrong, in one line that says what, where and how to mend it."""


class InputError(ValueError):
    """Bad input from outside: a missing file, an unknown parameter, an image out of range.

    The message is one line. The command line prints it and exits with code 2; a notebook shows it without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Show only the message in IPython, which looks this method up by name."""
        return [f"{type(self).__name__}: {self}"]


class BuildError(RuntimeError):
    """A chapter that fails, or pages that do not come out whole; the message is one line that says where."""
