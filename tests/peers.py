"""Other people's libraries that serve as oracles; what they warn of at import is theirs."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import rlax

__all__ = ["rlax"]
