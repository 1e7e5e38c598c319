"""The configuration of the core: the order of its sources, and the refusal that lists every problem of all of them.

Files are real files in a temporary directory; the environment is a dict, never that of the test run.
"""

import math
import os
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core import startup
from core.access.keys import Keyring, Role, token_digest
from core.settings.config import SETTINGS, WORKERS_MAX, Config, effective
from core.settings.environment import EnvironmentName
from core.settings.tree import values_of
from core.startup import API_KEY_LENGTH_MIN, OVERLAYS, ConfigurationError, load, worker_count

KEY = "your-secret-key"
PRODUCTION = {"MLSDM_ENV": "production", "API_KEY": KEY}


def problems_of(path: Path | None, environ: dict[str, str]) -> list[str]:
    """Return the problems of a configuration that must be refused."""
    with pytest.raises(ConfigurationError) as refusal:
        load(None if path is None else str(path), environ)
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    return refusal.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


class TestDefaults:
    def test_embedded_defaults_without_any_source(self) -> None:
        """Without a file and variables the embedded defaults of development are in force."""
        loaded = load(None, {})

        assert loaded.config == Config()
        assert (loaded.source, loaded.environment, len(loaded.keyring)) == ("embedded defaults", "development", 0)

    @pytest.mark.parametrize("name", ["development", "staging", "production"])
    def test_overlays_are_valid(self, name: EnvironmentName) -> None:
        """Each overlay changes exactly the settings that it lists."""
        changed = {
            key: value
            for key, value in values_of(startup.default_config(name)).items()
            if value != SETTINGS[key].default
        }

        assert changed == OVERLAYS[name]

    def test_rate_limits_are_on_in_production_only(self) -> None:
        """Development and staging have no rate limits."""
        names: list[EnvironmentName] = ["development", "staging", "production"]

        assert [startup.default_config(name).security.rate_limiting.enabled for name in names] == [False, False, True]


class TestFile:
    def test_empty_file_and_empty_sections_are_defaults(self, file: Path) -> None:
        """A file whose lines are all comments sets nothing."""
        for text in ("", "# nothing\n", "---\n", "server:\nsecurity:\n  rate_limiting:\n"):
            file.write_text(text)

            assert load(str(file), {}).config == Config()

    def test_values_of_a_file_are_read(self, file: Path) -> None:
        """Sections nest, integers are accepted for floats, and names are case-insensitive."""
        file.write_text(
            "capacity: 1_000\nserver: {host: '::1', port: 0}\ncognitive_rhythm:\n  cycle_seconds: 2\n  clock: Events\n"
            "moral_filter: {ema_alpha: 1e-3}\nobservability: {logging: {level: debug}}\n"
        )
        loaded = load(str(file), {})

        assert str(file) == loaded.source
        assert {key: value for key, value in values_of(loaded.config).items() if value != SETTINGS[key].default} == {
            "capacity": 1000,
            "server.host": "::1",
            "server.port": 0,
            "cognitive_rhythm.cycle_seconds": 2.0,
            "cognitive_rhythm.clock": "events",
            "moral_filter.ema_alpha": 0.001,
            "observability.logging.level": "DEBUG",
        }
        assert isinstance(loaded.config.cognitive_rhythm.cycle_seconds, float)

    def test_a_quoted_empty_text_is_a_value(self, file: Path) -> None:
        """`keys_path: ""` means none; a key without a value is refused, and so is a text that must not be empty."""
        file.write_text("security: {keys_path: ''}\nserver: {trusted_proxies: ''}\n")
        assert load(str(file), {}).config == Config()

        file.write_text("security: {keys_path: }\nserver:\n  trusted_proxies:\n  host: ''\n")
        assert [problem.split(" is empty (")[0] for problem in problems_of(file, {})] == [
            "security.keys_path",
            "server.trusted_proxies",
            "server.host",
        ]

    def test_the_innermost_section(self, file: Path) -> None:
        """Tiers are four levels deep; of several settings with the same name the outermost is suggested."""
        file.write_text(
            "security: {rate_limiting: {tiers: {bulk: {burst_capacity: 7}, gold: {}}}}\nburst_capacity: 1\n"
        )
        where = f"{file}, line"
        at_top = ", ".join(sorted(Config.__struct_fields__))
        wanted = "security.rate_limiting.burst_capacity"

        [gold, burst] = problems_of(file, {})

        assert gold.startswith(f"security.rate_limiting.tiers.gold is unknown ({where} 1): expected one of bulk, high")
        assert burst == f"burst_capacity is unknown ({where} 2): expected one of {at_top}; did you mean {wanted}?"

    def test_yaml_typing_is_not_used(self, file: Path) -> None:
        """What YAML 1.1 reads as octal, sexagesimal or a switch is read as spelled, or refused."""
        host = SETTINGS["server.host"].range
        file.write_text("capacity: 0100\n")
        assert load(str(file), {}).config.capacity == 100

        file.write_text(
            "capacity: 22:22\ndimension: 0x10\nserver: {host: no}\nsecurity: {rate_limiting: {enabled: on}}\n"
        )
        assert problems_of(file, {}) == [
            f"capacity is 22:22 ({file}, line 1): expected a whole number from 100 to 1000000 (unit: slots)",
            f"dimension is 0x10 ({file}, line 2): expected a whole number from 2 to 4096 (unit: floats)",
            f"server.host is no, which is not text ({file}, line 3): expected {host} (unit: address)",
            f"security.rate_limiting.enabled is on ({file}, line 4): expected true or false (unit: switch)",
        ]

    def test_all_problems_at_once(self, file: Path) -> None:
        """One refusal has every key, its line, the value and the expectation."""
        file.write_text(
            "dimension: 1\ncapacity: true\npayload_size_max: '12'\nlog_capacity:\n"
            "moral_filter:\n  ema_alpha: .nan\n  dead_band: [0.1]\nrecall: 3\n"
            "server:\n  host: {}\n  prot: 80\nema_alpha: 1\n"
        )
        where = f"{file}, line"
        in_server = "connections_max, cors_origins, deferred_max, host, port, trusted_proxies, workers"
        at_top = ", ".join(sorted(Config.__struct_fields__))

        assert problems_of(file, {}) == [
            f"dimension is 1 ({where} 1): expected a whole number from 2 to 4096 (unit: floats)",
            f"capacity is true ({where} 2): expected a whole number from 100 to 1000000 (unit: slots)",
            f"payload_size_max is the text '12' ({where} 3): expected a whole number from 0 to 65536 (unit: bytes)",
            f"log_capacity is empty ({where} 4): expected a whole number from 1024 to 16777216 (unit: entries)",
            f"moral_filter.ema_alpha is .nan ({where} 6): expected a number above 0, at most 1 (unit: ratio)",
            f"moral_filter.dead_band is a list ({where} 7): expected a number from 0 to 0.5 (unit: ratio)",
            f"recall is 3 ({where} 8): expected a section with phase_tolerance",
            f"server.host is a section ({where} 10): expected an IPv4 or IPv6 address or a host name (unit: address)",
            f"server.prot is unknown ({where} 11): expected one of {in_server}; did you mean server.port?",
            f"ema_alpha is unknown ({where} 12): expected one of {at_top}; did you mean moral_filter.ema_alpha?",
        ]

    def test_a_key_given_twice_is_refused(self, file: Path) -> None:
        """A second value for a key does not silently override the first, at any depth."""
        file.write_text("capacity: 100\nserver:\n  port: 1\n  port: 2\ncapacity: 100\nserver: {}\n")

        assert problems_of(file, {}) == [
            f"server.port is given twice ({file}, line 3 and {file}, line 4): expected once",
            f"capacity is given twice ({file}, line 1 and {file}, line 5): expected once",
            f"server is given twice ({file}, line 2 and {file}, line 6): expected once",
        ]

    @pytest.mark.parametrize(
        "content",
        [
            b"- a list",
            b"text",
            b"a: b: c",
            b"\xff\xfe\x00",
            b"\x00",
            b"a: 1\n---\nb: 2",
            b"[" * 5_000,
            b"#" * 2_000_000,
            b"&a [*a]: 1",
            b"!!python/object/apply:os.system [exit]",
            b"capacity: !!python/object/apply:os.system [exit]",
        ],
        ids=lambda content: repr(content[:16]),
    )
    def test_a_file_that_is_not_a_mapping_is_refused(self, file: Path, content: bytes) -> None:
        """For any content the refusal is one line."""
        file.write_bytes(content)
        problems = problems_of(file, {})

        assert ["\n" not in problem for problem in problems] == [True]

    def test_a_fifo_is_refused_without_waiting(self, tmp_path: Path) -> None:
        """A reload does not wait for a writer."""
        fifo = tmp_path / "fifo.yaml"
        os.mkfifo(fifo)

        assert problems_of(fifo, {}) == [f"{fifo} is a FIFO: expected a YAML file"]

    def test_a_file_that_is_named_must_exist(self, tmp_path: Path) -> None:
        """A path that leads nowhere, or to a directory, does not fall back to the defaults."""
        nowhere = tmp_path / "nowhere.yaml"

        assert problems_of(nowhere, {}) == [
            f"{nowhere} cannot be read (No such file or directory): expected a YAML file"
        ]
        assert problems_of(None, {"CONFIG_PATH": str(tmp_path)}) == [
            f"{tmp_path} cannot be read (Is a directory): expected a YAML file"
        ]

    def test_aliases_are_not_expanded(self, file: Path) -> None:
        """A document that would expand to 10^9 elements is refused at once, in a short line."""
        levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
        file.write_text("\n".join(["l0: &l0 [x]", *levels, "capacity: *l9\n"]))

        assert all(len(problem) < 400 + len(str(file)) for problem in problems_of(file, {}))


class TestPlaces:
    """The places where a server looks for its file when none is named."""

    @pytest.fixture
    def places(self, tmp_path: Path) -> list[Path]:
        """The operator's file and that of the image; neither exists yet."""
        return [tmp_path / "etc" / "config.yaml", tmp_path / "share" / "production-ready.yaml"]

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def test_the_first_existing_place_is_used(self, places: list[Path]) -> None:
        """Only that file is read, and the source names it."""
        looked = [str(place) for place in places]
        found = [load(None, {}, looked)]
        self.put(places[1], "capacity: 200\nlog_capacity: 2048")
        found += [load(None, {}, looked)]
        self.put(places[0], "capacity: 300")
        found += [load(None, {}, looked)]

        assert [(loaded.source, loaded.config.capacity, loaded.config.log_capacity) for loaded in found] == [
            ("embedded defaults", 20_000, 65_536),
            (looked[1], 200, 2048),
            (looked[0], 300, 65_536),
        ]

    def test_a_named_file_overrides_the_places(self, places: list[Path], file: Path) -> None:
        """Named by CONFIG_PATH or by the caller; when it is missing or its name was lost, no place stands in for it."""
        file.write_text("capacity: 100")
        self.put(places[0], "capacity: 300")
        looked = [str(places[0])]

        assert load(None, {"CONFIG_PATH": str(file)}, looked).config.capacity == 100
        assert load(str(file), {}, looked).config.capacity == 100
        for lost in ("", str(places[1])):
            with pytest.raises(ConfigurationError):
                load(None, {"CONFIG_PATH": lost}, looked)

    def test_an_unreadable_place_is_a_problem(self, places: list[Path]) -> None:
        """A directory or a link that leads nowhere is not skipped in favour of the next place."""
        self.put(places[1], "")
        places[0].mkdir(parents=True)
        looked = [str(place) for place in places]
        with pytest.raises(ConfigurationError) as directory:
            load(None, {}, looked)
        places[0].rmdir()
        places[0].symlink_to("nowhere")
        with pytest.raises(ConfigurationError) as link:
            load(None, {}, looked)

        assert directory.value.problems + link.value.problems == [
            f"{places[0]} cannot be read (Is a directory): expected a YAML file",
            f"{places[0]} cannot be read (No such file or directory): expected a YAML file",
        ]

    def test_places_of_a_server(self) -> None:
        """The path that manifests mount and the path in the image."""
        assert startup.PLACES == ("/etc/mlsdm/config.yaml", "/usr/share/mlsdm/production-ready.yaml")


class TestPrecedence:
    def test_each_source_overrides_the_one_before(self, file: Path) -> None:
        """Defaults < overlay < file < MLSDM_ variable < plain variable."""
        environ = dict(PRODUCTION)
        levels: list[str] = [
            load(None, {}).config.observability.logging.format,
            load(None, environ).config.observability.logging.format,
        ]
        file.write_text("observability: {logging: {format: text, level: ERROR}}")
        environ["CONFIG_PATH"] = str(file)
        levels += [load(None, environ).config.observability.logging.format]
        levels += [load(None, environ).config.observability.logging.level]
        environ["MLSDM_OBSERVABILITY__LOGGING__LEVEL"] = "WARNING"
        levels += [load(None, environ).config.observability.logging.level]
        environ["LOG_LEVEL"] = "debug"
        levels += [load(None, environ).config.observability.logging.level]

        assert levels == ["text", "json", "text", "ERROR", "WARNING", "DEBUG"]

    def test_the_path_argument_overrides_config_path(self, file: Path) -> None:
        """A file can be checked while the environment names another."""
        file.write_text("capacity: 100")

        assert load(str(file), {"CONFIG_PATH": "/nowhere"}).config.capacity == 100

    def test_a_wrong_value_is_a_problem_even_when_overridden(self, file: Path) -> None:
        """A wrong value in the file is reported although a variable overrides it."""
        file.write_text("capacity: 1")

        assert len(problems_of(file, {"MLSDM_CAPACITY": "1000"})) == 1


class TestRelations:
    def test_initial_threshold_lies_within_its_bounds(self) -> None:
        """The three thresholds must not descend, whichever source they come from."""
        [problem] = problems_of(None, {"MLSDM_MORAL_FILTER__MIN_THRESHOLD": "0.6"})
        low, start, high = (f"moral_filter.{name}_threshold" for name in ("min", "initial", "max"))

        assert problem == f"{low} is 0.6, {start} is 0.5, {high} is 0.9: expected {low} ≤ {start} ≤ {high}"

    def test_thresholds_may_be_equal(self) -> None:
        """A threshold that is fixed to one value is valid."""
        environ = {f"MLSDM_MORAL_FILTER__{name}_THRESHOLD": "0.4" for name in ("MIN", "INITIAL", "MAX")}

        assert load(None, environ).config.moral_filter.max_threshold == 0.4

    def test_draining_ends_before_the_shutdown(self) -> None:
        """A drain period as long as the shutdown would leave no time for answers."""
        [problem] = problems_of(None, {**PRODUCTION, "MLSDM_RESOURCES__SHUTDOWN_TIMEOUT": "5"})
        drain, shutdown = "resources.drain_period", "resources.shutdown_timeout"

        assert problem == f"{drain} is 5.0, {shutdown} is 5: expected {drain} < {shutdown}"

    def test_a_refused_value_is_not_judged_twice(self) -> None:
        """The relation is not checked against the default that stands in for a refused value."""
        environ = {"MLSDM_MORAL_FILTER__MIN_THRESHOLD": "0.6", "MLSDM_MORAL_FILTER__INITIAL_THRESHOLD": "7"}

        assert len(problems_of(None, environ)) == 1


class TestKeys:
    """`load` reads the keys file with the rest; tests/core/access/test_key_file.py has the problems of one."""

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys.yaml"
        path.write_text(f"keys: [{{id: web, role: admin, tier: high, digest: {token_digest('web.1').hex()}}}]\n")
        path.chmod(0o600)
        return path

    @pytest.mark.parametrize("environ", [{}, {"MLSDM_ENV": "production"}, PRODUCTION])
    def test_a_keys_file_is_read(self, file: Path, keys: Path, environ: dict[str, str]) -> None:
        """In addition to API_KEY or instead of it; production needs one of them."""
        file.write_text(f"security: {{keys_path: {keys}}}")
        loaded = load(str(file), environ)
        found = [loaded.keyring.identify(token, 0.0) for token in ("web.1", KEY, "web.2")]

        assert [key[:3] for key in found[:1] if key] == [("web", Role.ADMIN, "high")]
        assert ["API_KEY"] * ("API_KEY" in environ) == [key.id for key in found[1:] if key]
        assert len(loaded.keyring) == 1 + ("API_KEY" in environ)

    def test_a_relative_path_begins_at_the_working_directory(self, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative keys_path behaves like a relative CONFIG_PATH."""
        monkeypatch.chdir(keys.parent)

        assert len(load(None, {"MLSDM_SECURITY__KEYS_PATH": keys.name}).keyring) == 1

    def test_without_keys_the_ring_is_open(self) -> None:
        """Only in development and staging; any key closes it."""
        assert load(None, {}).keyring.is_open
        assert load(None, {"MLSDM_ENV": "staging"}).keyring.is_open
        assert not load(None, {"API_KEY": KEY}).keyring.is_open

    def test_problems_of_all_files_are_one_refusal(self, file: Path, keys: Path) -> None:
        """Those of the configuration come first; a key that was refused does not count as missing in production."""
        file.write_text(f"capacity: 1\nsecurity: {{keys_path: {keys}}}")
        keys.write_text("keys: [{id: a.b}]")
        begins = [problem.split(" (")[0] for problem in problems_of(file, {"MLSDM_ENV": "production", "PORT": "x"})]

        assert begins == [
            "capacity is 1",
            "server.port is x",
            "keys[0].id has '.' in it",
            "keys[0] has no role",
            "keys[0] has no digest",
        ]

    @pytest.mark.parametrize("environ", [{}, {"API_KEY": " "}])
    def test_production_needs_a_key(self, environ: dict[str, str]) -> None:
        """It does not start without variable and file; a refused path is the only problem."""
        environ = {"MLSDM_ENV": "production", **environ}
        sentence = "API_KEY is not set: expected a secret key, because MLSDM_ENV is production"

        assert problems_of(None, environ) == [f"{sentence} and security.keys_path names no file"]
        assert len(problems_of(None, {**environ, "MLSDM_SECURITY__KEYS_PATH": " "})) == 1

    def test_production_refuses_a_short_key(self) -> None:
        """Also with a keys file; blanks around it do not count, and the refusal does not show it."""
        enough = "k7" * API_KEY_LENGTH_MIN
        enough = enough[:API_KEY_LENGTH_MIN]
        sentence = f"API_KEY is too short: expected at least {API_KEY_LENGTH_MIN} characters"

        assert problems_of(None, {**PRODUCTION, "API_KEY": f" {enough[1:]}\n"}) == [
            f"{sentence}, because MLSDM_ENV is production"
        ]
        assert load(None, {**PRODUCTION, "API_KEY": f" {enough}\n"}).keyring == Keyring(enough)

    @pytest.mark.parametrize("name", ["development", "staging"])
    def test_a_short_key_outside_production_is_a_note(self, name: EnvironmentName) -> None:
        """The key is valid and the operator is told; a long key or none gives no note."""
        loaded = load(None, {"MLSDM_ENV": name, "API_KEY": "k7"})

        assert loaded.keyring == Keyring("k7")
        [note] = loaded.notes
        assert note.startswith(f"API_KEY is too short: expected at least {API_KEY_LENGTH_MIN} characters; production ")
        assert [load(None, {"MLSDM_ENV": name, **given}).notes for given in ({}, {"API_KEY": KEY})] == [(), ()]

    def test_one_token_opens_one_key(self, keys: Path) -> None:
        """API_KEY must not be in the keys file as well."""
        [problem] = problems_of(None, {"API_KEY": "web.1", "MLSDM_SECURITY__KEYS_PATH": str(keys)})

        assert problem.startswith("keys[0].digest is that of API_KEY (")


class TestLoaded:
    def test_the_keys_are_not_shown(self) -> None:
        """Neither the representation nor the logged tree has the key."""
        loaded = load(None, {**PRODUCTION, "API_KEY": "very-secret-key"})

        assert loaded.keyring == Keyring("very-secret-key")
        shown = repr(loaded) + str(loaded) + repr(effective(loaded.config))
        for secret in ("very-secret-key", token_digest("very-secret-key").hex(), repr(token_digest("very-secret-key"))):
            assert secret not in shown


class TestReload:
    def test_equal_configurations_need_no_restart(self) -> None:
        """The same configuration can be reloaded."""
        assert startup.unreloadable(load(None, {}).values(), load(None, {})) == {}

    def test_settings_that_need_a_restart(self) -> None:
        """They are those of the block and of the socket."""
        assert [key for key, setting in SETTINGS.items() if setting.restart_reason] == [
            "dimension",
            "capacity",
            "payload_size_max",
            "log_capacity",
            "idempotency_capacity",
            "server.host",
            "server.port",
        ]

    @pytest.mark.parametrize("key", [key for key, setting in SETTINGS.items() if setting.restart_reason])
    def test_a_change_that_needs_a_restart_is_refused(self, key: str) -> None:
        """The sentence names the key, the old value and the new one."""
        wanted = {"server.host": "localhost"}.get(key, "2048")
        changed = load(None, {SETTINGS[key].variable: wanted})
        [sentence] = startup.unreloadable(load(None, {}).values(), changed).values()

        assert sentence.startswith(f"{key} cannot change from {SETTINGS[key].default} to {wanted} ")

    def test_all_problems_are_named(self) -> None:
        """Those of values, and those of settings that need a restart; a value that is wrong is named once."""
        environ = {"MLSDM_CAPACITY": "-1", "MLSDM_PAYLOAD_SIZE_MAX": "2048", "MLSDM_MORAL_FILTER__EMA_ALPHA": "7"}
        with pytest.raises(ConfigurationError) as raised:
            startup.reload(load(None, {"MLSDM_CAPACITY": "500"}), environ)

        assert [sentence.split()[0] for sentence in raised.value.problems] == [
            "capacity", "moral_filter.ema_alpha", "payload_size_max",
        ]  # fmt: skip

    def test_a_server_with_keys_does_not_become_open(self, tmp_path: Path) -> None:
        """An empty file is valid, and is what a full disk leaves behind; API_KEY alone keeps a server closed."""
        keys = tmp_path / "keys.yaml"
        keys.write_text(f"keys: [{{id: web, role: write, digest: {'0' * 64}}}]\n")
        keys.chmod(0o600)
        with_file = {"MLSDM_SECURITY__KEYS_PATH": str(keys)}
        closed, opened = load(None, with_file), load(None, {})
        with pytest.raises(ConfigurationError, match=r"^security\.keys_path is empty: .* open to everybody"):
            startup.reload(closed, {})

        assert startup.reload(load(None, with_file | {"API_KEY": "x"}), {"API_KEY": "x"}).keyring == Keyring("x")
        assert startup.reload(opened, with_file).keyring == closed.keyring
        assert startup.reload(opened, {}).keyring.is_open

    def test_all_other_settings_can_be_reloaded(self) -> None:
        """Workers, thresholds, limits and logs change without a restart."""
        environ = {"WORKERS": "5", "LOG_LEVEL": "DEBUG", "MLSDM_MORAL_FILTER__EMA_ALPHA": "0.2"}

        assert startup.unreloadable(load(None, {}).values(), load(None, {**PRODUCTION, **environ})) == {}


class TestWorkerCount:
    def test_worker_count_is_one_per_usable_core(self, tmp_path: Path) -> None:
        """A number is used as given; 0 means one worker per core of the container, at least one."""
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/\n")
        (tmp_path / "proc/self/mountinfo").write_text("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text("30000 100000\n")
        three = msgspec.convert({"server": {"workers": 3}}, Config)

        assert worker_count(three) == 3
        assert worker_count(Config(), tmp_path) == 1
        assert 1 <= worker_count(Config()) <= WORKERS_MAX


def load_or_problems(path: str | None, environ: dict[str, str]) -> list[str]:
    """Return the problems of a configuration; none when it is valid."""
    try:
        load(path, environ)
    except ConfigurationError as error:
        return error.problems
    return []


# Invalid for every setting: no number, switch, choice, host or existing file.
JUNK_TEXT = st.text(min_size=1).filter(lambda text: text.strip() == "" or not text.strip()[0].isascii())
MAY_BE_EMPTY = {key for key, setting in SETTINGS.items() if setting.default == ""}
JUNK = st.one_of(
    JUNK_TEXT,
    st.sampled_from([math.nan, math.inf, -math.inf, -1, -0.5, 10**30, 1e300, b"\x00", []]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(), st.none(), min_size=1, max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(sorted(SETTINGS)), value=JUNK)
@example(key="moral_filter.ema_alpha", value=0)
@example(key="capacity", value=True)
@example(key="server.host", value="a b")
def test_a_bad_value_in_a_file_is_named(file: Path, key: str, value: object) -> None:
    """For any value in place of a valid one, the only exception is ConfigurationError and it names the key."""
    tree: object = value
    for name in reversed(key.split(".")):
        tree = {name: tree}
    if key in MAY_BE_EMPTY and isinstance(value, str) and not value.strip():
        return
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")

    assert any(problem.startswith(key) for problem in problems_of(file, {}))


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(sorted(SETTINGS)), text=st.one_of(JUNK_TEXT, st.sampled_from(["", "nan", "-inf", "1e999", "٣"]))
)
@example(key="dimension", text="9" * 5000)
@example(key="dimension", text="384.0")
@example(key="recall.phase_tolerance", text="\udcff")
def test_a_bad_value_in_a_variable_is_named(key: str, text: str) -> None:
    """The same holds for variables, whose text may have bytes that are not Unicode."""
    if key in ("server.host", "modules.enabled") and text == "nan":  # a name that a host or a module may have
        return
    [problem] = problems_of(None, {SETTINGS[key].variable: text})

    assert problem.startswith((f"{key} is ", f"{key} has "))
    assert problem.isprintable()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_bytes_are_a_configuration_or_a_refusal(file: Path, content: bytes) -> None:
    """No content of the file raises anything but ConfigurationError."""
    file.write_bytes(content)

    assert all(problem.isprintable() for problem in load_or_problems(str(file), {}))


@settings(max_examples=200, deadline=None)
@given(environ=st.dictionaries(st.text().map("MLSDM_".__add__), st.text(), max_size=5))
def test_any_environment_is_a_configuration_or_a_refusal(environ: dict[str, str]) -> None:
    """No environment raises anything but ConfigurationError."""
    assert all(problem.isprintable() for problem in load_or_problems(None, environ))
