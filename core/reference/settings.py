"""The settings in force in the store, reference version, and the sizes of a store."""

from typing import NamedTuple

from core.namespaces import Policy
from core.regime import Regime


class Settings(NamedTuple):
    """The regime of core.regime."""

    regime: Regime

    @property
    def policy(self) -> Policy:
        """The settings of the server's governor."""
        return Policy(self.regime.governor, self.regime.mode)


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
