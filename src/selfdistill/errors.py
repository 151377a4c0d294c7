"""What users are told when something they gave, or something they lack, stops the work."""


class UserError(Exception):
    """One line for the user: the place, the value, and what is allowed or to be done."""


class NonFiniteOutputsError(UserError, RuntimeError):
    """What a network says of some images is no number; the message says whose, of which split, and how many."""
