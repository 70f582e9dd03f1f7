"""The two ways a request can end without a fault of the program."""


class UserError(ValueError):
    """Something was asked that cannot be done. The message says what was asked, what is possible and what to type."""


class Cancelled(Exception):
    """The run was stopped on request; nothing was produced."""
