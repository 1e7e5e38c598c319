"""The regime: the settings in force, as the native core computes with them and as the reference model reads them.

Configuration is what an operator wrote; the regime is what the committed state holds. The log records each change of
it, so that a replay knows which one held at every position. Decays and gains are float32, because the cascade is.
"""

from typing import NamedTuple, Self

from core.settings.config import Config
from shm.layout import FLAG_CONSOLIDATION, FLAG_ELEMENT_GATE, FLAG_EVENTS_CLOCK
from shm.records import Settings, SettingsPointer, new_settings


class GovernorSettings(NamedTuple):
    """The constants of the governor. Thresholds, step and band are in units of moral value, 0 to 1."""

    initial_threshold: float = 0.50
    min_threshold: float = 0.30
    max_threshold: float = 0.90
    dead_band: float = 0.05
    ema_alpha: float = 0.1
    adaptation_rate: float = 0.05


class RhythmSettings(NamedTuple):
    """Durations in steps. `consolidation`: a cascade at each step asleep. `by_events`: a step per decision."""

    wake_duration: int = 8
    sleep_duration: int = 3
    consolidation: bool = True
    by_events: bool = False


class SynapseSettings(NamedTuple):
    """λ is the share that a level loses per run, θ the gate to the next level, g the share that passes it."""

    lambda_l1: float = 0.50
    lambda_l2: float = 0.10
    lambda_l3: float = 0.01
    theta_l1: float = 1.2
    theta_l2: float = 2.5
    gating12: float = 0.45
    gating23: float = 0.30
    by_element: bool = False


class Regime(NamedTuple):
    """What governs a transition. `cycle_ns` is the length of a rhythm step when the clock is time."""

    governor: GovernorSettings
    rhythm: RhythmSettings
    synapse: SynapseSettings
    cycle_ns: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the settings that a configuration asks for."""
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
        """Return them as the native core's record."""
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
            flags=FLAG_CONSOLIDATION * rhythm.consolidation
            + FLAG_EVENTS_CLOCK * rhythm.by_events
            + FLAG_ELEMENT_GATE * synapse.by_element,
        )

    @classmethod
    def of_record(cls, record: Settings) -> Self:
        """Return the settings that a record holds; λ and g come back as the float32 values that are computed with."""
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
        )
