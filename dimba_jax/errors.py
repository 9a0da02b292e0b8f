"""The errors that a user can mend."""


class UserError(Exception):
    """A wrong setting, file, row or prompt: the message names it and says what to do. Commands print it alone."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run; the message names the key and says what to do."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be written, is damaged, or does not fit what it is read into."""
