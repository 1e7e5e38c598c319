"""The view of a decision: its documented example is one that the server gives."""

from typing import Any

import msgspec

from app.api.codec.event_codec import Event
from app.api.decision_view import DecisionView
from core.reference.governor import Governor
from core.regime import Regime
from core.settings.config import Config


def examples(of: Any) -> dict[str, Any]:
    """Return the first example of each property of a type that has one, by name."""
    schema = msgspec.json.schema(of)
    [properties] = [part["properties"] for part in schema["$defs"].values() if "properties" in part]
    return {name: about["examples"][0] for name, about in properties.items() if "examples" in about}


def test_the_example_of_a_decision_follows_from_the_example_of_an_event() -> None:
    """The thresholds before and after, and the mean, are those of the first event of a server."""
    event, decision = examples(Event), examples(DecisionView)
    settings = Regime.of(Config()).governor

    accepted, after = Governor.initial(settings).decide(event["moral_value"], settings)

    assert (decision["reason"], decision["moral_value"]) == ("accepted" if accepted else "moral", event["moral_value"])
    assert (decision["threshold_before"], decision["moral_filter_threshold"], decision["ema"]) == (
        settings.initial_threshold, after.theta, after.ema,
    )  # fmt: skip
