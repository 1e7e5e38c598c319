"""The governor at run time: GET and PATCH /governor, POST /governor/reset, /governor/stop and /governor/resume.

GET shows the settings in force. PATCH changes some of them within the ranges of the configuration (RFC 7396: members
that are not named stay). Reset sets threshold, rhythm and levels to their initial values. Stop refuses events until
resume; meanwhile memories can be read, readiness fails and liveness passes.

Threading: everything but GET is a command to the controller (core/commands.py), which a thread of the worker's pool
awaits for at most a second. A command that was not carried out in that time is withdrawn, so 503 `controller_busy`
means that nothing was changed and nothing will be. Where it cannot be withdrawn, because the store is stuck, the
response is `outcome_unknown`, and the audit log says so.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Final, Literal, get_type_hints

import falcon
import msgspec
from msgspec import Meta, structs

from app.api.access.audit_log import AuditLog
from app.api.codec.body_errors import DECODE_ERRORS, refuse_body, refuse_repeats
from app.api.codec.media_types import JSON, check_charset, encode
from app.api.context import Context
from app.api.fields import BootId, LogId, Position, component
from app.api.operation import Operation
from app.api.problem import Problem, invalid
from app.api.problem_codes import BODY, COMMAND, STORE
from core.access.keys import Role
from core.commands import OutcomeUnknown, carry_out
from core.regime import Regime
from core.settings.config import SETTINGS, CognitiveRhythm, Config, MoralFilter
from core.settings.tree import contradictions
from shm.layout import FLAG_STOPPED
from shm.records import SettingsPointer, State
from shm.store import Store, is_configured

MERGE_PATCH: Final = "application/merge-patch+json"


class GovernorView(msgspec.Struct):
    """The settings in force at `position`. `configured`: whether they are those of the configuration."""

    moral_filter: MoralFilter
    cognitive_rhythm: CognitiveRhythm
    stopped: Annotated[bool, Meta(description="Whether an operator has stopped admissions.", examples=[False])]
    configured: bool
    position: Position
    boot_id: BootId
    log_id: LogId


@component("Commanded")
class CommandView(msgspec.Struct, omit_defaults=True):
    """A command that was carried out, at `position` of the log; no `position` if the log no longer holds it."""

    command: Literal["reset", "stop", "resume"]
    boot_id: BootId
    log_id: LogId
    position: Position | None = None


def _change_of(tree: type[msgspec.Struct]) -> Any:
    """Return the type of a change of `tree`: the same members with the same ranges, each of them optional."""
    return msgspec.defstruct(
        tree.__name__ + "Change",
        [
            (name, hint | msgspec.UnsetType, msgspec.UNSET)
            for name, hint in get_type_hints(tree, include_extras=True).items()
        ],
        namespace={"__doc__": f"Members of {tree.__name__} to change; members that are not named keep their values."},
        forbid_unknown_fields=True,
        kw_only=True,
    )


class GovernorChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PATCH /governor: the members to change."""

    moral_filter: _change_of(MoralFilter) | msgspec.UnsetType = msgspec.UNSET  # type: ignore[valid-type] # made above
    cognitive_rhythm: _change_of(CognitiveRhythm) | msgspec.UnsetType = msgspec.UNSET  # type: ignore[valid-type] # made above


_Change = Annotated[
    GovernorChange,
    Meta(examples=[{"moral_filter": {"adaptation_rate": 0.02}}], extra_json_schema={"minProperties": 1}),
]
MEMBERS: Final = {
    section: {
        key.rpartition(".")[2]: setting.range for key, setting in SETTINGS.items() if key.startswith(section + ".")
    }
    for section in ("moral_filter", "cognitive_rhythm")
}


class GovernorResource:
    """GET and PATCH /governor."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Show the governor settings in force.", Role.READ, GovernorView, refusals=STORE),
        "PATCH": Operation(
            "Change governor settings, until the configuration of the governor changes or the server restarts. "
            f"The Content-Type may be {MERGE_PATCH}, too (RFC 7396).",
            Role.ADMIN, GovernorView,
            body={JSON: _Change},  # with both names, openapi-python-client 0.29 makes a module that cannot be imported
            refusals=(*BODY, "change_empty", "settings_contradict", *COMMAND), blocks=True,
        ),
    }  # fmt: skip

    def __init__(self, context: Context, audit: AuditLog) -> None:
        self.context = context
        self.audit = audit
        self.decode = msgspec.json.Decoder(GovernorChange).decode

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the settings in force."""
        response.content_type = JSON
        response.data = encode(_view(self.context.store.state(), self.context.boot_id, self.context.log_id))

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body

    def on_patch(self, request: falcon.Request, response: falcon.Response) -> None:
        """Change some settings; runs on the pool."""
        changes = self._read(request)
        replaced: dict[str, Any] = {}

        def settings(state: State) -> SettingsPointer:
            before = msgspec.to_builtins(_view(state))
            replaced.update(
                {section: {name: before[section][name] for name in changes[section]} for section in changes}
            )
            return _regime(self.context.config, state, changes).to_record()

        store = Store(self.context.store.block)
        with audited(self.audit, "governor_changed", request, before=replaced, after=changes) as line:
            state, line["position"] = carry_out(store, "configure", settings)
        response.content_type = JSON
        response.data = encode(_view(state, self.context.boot_id, self.context.log_id))

    def _read(self, request: falcon.Request) -> dict[str, dict[str, Any]]:
        """Return the values to change, by section and name. Raises Problem."""
        content_type = request.env.get("CONTENT_TYPE", JSON)
        media = content_type.partition(";")[0].strip().lower()
        if media not in (JSON, MERGE_PATCH):
            raise Problem(
                415, "unsupported_media_type", f"Content-Type is {media[:40]!r}; expected {JSON} or {MERGE_PATCH}",
                field="Content-Type", expected=f"{JSON} or {MERGE_PATCH}",
            )  # fmt: skip
        check_charset(content_type)
        body = request.env["wsgi.input"].read()
        try:
            changes: dict[str, dict[str, Any]] = msgspec.to_builtins(self.decode(body))
        except DECODE_ERRORS as error:
            refuse_body(error, body, JSON, MEMBERS)
        refuse_repeats(body, len(changes) + sum(map(len, changes.values())))
        if not any(changes.values()):
            raise invalid("body", "change_empty", "changes nothing", "at least one member to change")
        return changes


class CommandResource:
    """POST /governor/reset, /governor/stop and /governor/resume: commands without a body."""

    def __init__(self, context: Context, audit: AuditLog, command: Literal["reset", "stop", "resume"]) -> None:
        self.context = context
        self.audit = audit
        self.command = command
        summary = {
            "reset": "Reset threshold, rhythm and levels to their initial values; memories stay.",
            "stop": "Stop admissions: events are refused until `resume`; memories can still be read.",
            "resume": "Resume admissions.",
        }[command]
        answer = Annotated[CommandView, Meta(extra_json_schema={"properties": {"command": {"const": command}}})]
        self.operations = {"POST": Operation(summary, Role.ADMIN, answer, refusals=COMMAND, blocks=True)}

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Carry out the command; runs on the pool."""
        with audited(self.audit, f"governor_{self.command}", request) as line:
            _, line["position"] = carry_out(Store(self.context.store.block), self.command, lambda _state: None)
        response.content_type = JSON
        response.data = encode(CommandView(self.command, self.context.boot_id, self.context.log_id, line["position"]))


@contextmanager
def audited(audit: AuditLog, event: str, request: falcon.Request, **members: Any) -> Iterator[dict[str, Any]]:
    """Write a command into the audit log once it was carried out, or may have been (then raises 503).

    Yields the members of the line; the body of the `with` statement may add some.
    """
    try:
        yield members
    except OutcomeUnknown as error:
        audit.record_change(event, request.env, outcome="unknown", **members)
        raise Problem.of_code("outcome_unknown") from error
    audit.record_change(event, request.env, **members)


def _view(state: State, boot_id: str = "", log_id: str = "") -> GovernorView:
    """Return the view of the settings in a state."""
    regime = Regime.of_record(state.settings)
    governor, rhythm = regime.governor, regime.rhythm
    return GovernorView(
        MoralFilter(**governor._asdict()),
        CognitiveRhythm(
            wake_duration=rhythm.wake_duration,
            sleep_duration=rhythm.sleep_duration,
            enable_consolidation=rhythm.consolidation,
            clock="events" if rhythm.by_events else "time",
            cycle_seconds=regime.cycle_ns / 1e9,
        ),
        bool(state.scalars.flags & FLAG_STOPPED),
        is_configured(state),
        int(state.position),
        boot_id,
        log_id,
    )


def _regime(config: Config, state: State, changes: Mapping[str, Mapping[str, Any]]) -> Regime:
    """Return the settings in force with `changes` (by section and name). Raises 422 if they contradict each other."""
    view = _view(state)
    sections = {
        name: structs.replace(section, **changes.get(name, {}))
        for name, section in (("moral_filter", view.moral_filter), ("cognitive_rhythm", view.cognitive_rhythm))
    }
    wanted = structs.replace(config, **sections)
    for problem in contradictions(wanted):
        found, _, expected = problem.sentence.removeprefix(problem.key + " ").rpartition(": expected ")
        raise invalid(problem.key, "settings_contradict", found, expected)
    held = Regime.of_record(state.settings)
    return Regime.of(wanted)._replace(synapse=held.synapse, mode=held.mode)
