"""The root of the errors that a user can mend."""


class UserError(Exception):
    """A wrong setting, file, row or prompt: the message names it and says what to do. Commands print it alone."""
