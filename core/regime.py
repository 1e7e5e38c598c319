"""The regime: the settings that govern a transition, as the native core and the reference model use them.

A configuration is what an operator wrote; the regime is what the committed state holds. The log records every change of
the regime, so that a replay knows which one was in force at each position. Decays and gains are float32, because the
cascade computes in float32. The defaults are those of `core.settings.config`.
"""

from typing import Final, Literal, NamedTuple, Self

from core.settings.config import Config
from shm.layout import FLAG_CONSOLIDATION, FLAG_ELEMENT_GATE, FLAG_EVENTS_CLOCK
from shm.layout import MODES as _MODES
from shm.records import Settings, SettingsPointer, new_settings

# How a governor judges: `shadow` adapts but lets every event through, `off` does not judge at all.
Mode = Literal["enforce", "shadow", "off"]
MODES: Final[tuple[Mode, ...]] = ("enforce", "shadow", "off")
assert MODES == _MODES


class GovernorSettings(NamedTuple):
    """The constants of the governor, in units of the moral value, 0 to 1; `ema_alpha` is a weight."""

    initial_threshold: float
    min_threshold: float
    max_threshold: float
    dead_band: float
    ema_alpha: float
    adaptation_rate: float


class RhythmSettings(NamedTuple):
    """Durations in steps. `consolidation`: run the cascade at each step asleep. `by_events`: one step per decision."""

    wake_duration: int
    sleep_duration: int
    consolidation: bool
    by_events: bool


class SynapseSettings(NamedTuple):
    """Per level: λ is the share lost per run, θ the gate to the next level, gating the share that passes the gate."""

    lambda_l1: float
    lambda_l2: float
    lambda_l3: float
    theta_l1: float
    theta_l2: float
    gating12: float
    gating23: float
    by_element: bool


class Regime(NamedTuple):
    """The settings in force.

    `cycle_ns` is the length of a rhythm step when the clock is time, `mode` that of the server's governor.
    """

    governor: GovernorSettings
    rhythm: RhythmSettings
    synapse: SynapseSettings
    cycle_ns: int
    mode: Mode = "enforce"

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the regime of a configuration."""
        moral, rhythm, levels = config.moral_filter, config.cognitive_rhythm, config.multi_level_memory
        return cls(
            GovernorSettings(
                moral.initial_threshold,
                moral.min_threshold,
                moral.max_threshold,
                moral.dead_band,
                moral.ema_alpha,
                moral.adaptation_rate,
            ),
            RhythmSettings(
                rhythm.wake_duration, rhythm.sleep_duration, rhythm.enable_consolidation, rhythm.clock == "events"
            ),
            SynapseSettings(
                levels.lambda_l1,
                levels.lambda_l2,
                levels.lambda_l3,
                levels.theta_l1,
                levels.theta_l2,
                levels.gating12,
                levels.gating23,
                levels.gate == "element",
            ),
            round(rhythm.cycle_seconds * 1e9),
        )

    def to_record(self) -> SettingsPointer:
        """Return the record of the native core."""
        governor, rhythm, synapse = self.governor, self.rhythm, self.synapse
        return new_settings(
            **governor._asdict(),
            theta_l1=synapse.theta_l1,
            theta_l2=synapse.theta_l2,
            cycle_ns=self.cycle_ns,
            decay=[1.0 - synapse.lambda_l1, 1.0 - synapse.lambda_l2, 1.0 - synapse.lambda_l3],
            gain12=synapse.gating12,
            gain23=synapse.gating23,
            wake_duration=rhythm.wake_duration,
            sleep_duration=rhythm.sleep_duration,
            mode=MODES.index(self.mode),
            flags=FLAG_CONSOLIDATION * rhythm.consolidation
            + FLAG_EVENTS_CLOCK * rhythm.by_events
            + FLAG_ELEMENT_GATE * synapse.by_element,
        )

    @classmethod
    def of_record(cls, record: Settings) -> Self:
        """Return the regime in a record. λ and gating are the float32 values that the native core computes with."""
        return cls(
            GovernorSettings(*(getattr(record, name) for name in GovernorSettings._fields)),
            RhythmSettings(
                record.wake_duration,
                record.sleep_duration,
                bool(record.flags & FLAG_CONSOLIDATION),
                bool(record.flags & FLAG_EVENTS_CLOCK),
            ),
            SynapseSettings(
                1.0 - record.decay[0],
                1.0 - record.decay[1],
                1.0 - record.decay[2],
                record.theta_l1,
                record.theta_l2,
                record.gain12,
                record.gain23,
                bool(record.flags & FLAG_ELEMENT_GATE),
            ),
            record.cycle_ns,
            MODES[record.mode],
        )
