"""The settings in force in the store, reference version: the regime, and the mode of the server's governor."""

from typing import NamedTuple

from core.reference.namespace import Mode, Policy
from core.regime import Regime


class Settings(NamedTuple):
    """The regime of core.regime, and the mode in which the server's governor judges."""

    regime: Regime
    mode: Mode = "enforce"

    @property
    def policy(self) -> Policy:
        """The settings of the server's governor."""
        return Policy(self.regime.governor, self.mode)


class Sizes(NamedTuple):
    """The sizes of a store, fixed when it is made.

    `capacity`: memories at most. `slack`: free slots beside the spare. `log_capacity`: entries in reach. `namespaces`:
    rows of the table. `pins_max`: pinned memories at most.
    """

    dimension: int
    capacity: int
    slack: int
    log_capacity: int
    namespaces: int
    pins_max: int
