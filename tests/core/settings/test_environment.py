"""The environment variables: names, overrides, API_KEY, and the variables that Kubernetes adds."""

import pytest

from core.access.keys import Keyring
from core.settings import decoder, environment
from core.settings.config import SETTINGS
from core.settings.config_file import NO_FILE
from core.settings.setting import Value
from core.startup import ConfigurationError, load

PRODUCTION = {"MLSDM_ENV": "production", "API_KEY": "your-secret-key"}


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as refusal:
        load(None, environ)
    return refusal.value.problems


def decoded(environ: dict[str, str]) -> dict[str, Value]:
    """Return the values that the variables give, without judging them together."""
    return decoder.decode(SETTINGS, {}, NO_FILE, environment.read(environ)).values


class TestName:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            ("dev", "development"),
            ("development", "development"),
            ("staging", "staging"),
            ("production", "production"),
            ("Production ", "production"),
        ],
    )
    def test_names_of_environments(self, given: str, name: str) -> None:
        """Three environments, one with a short name, in any case."""
        assert load(None, {"MLSDM_ENV": given, "API_KEY": "your-secret-key"}).environment == name

    @pytest.mark.parametrize("given", ["prod", "", " ", "test"])
    def test_any_other_name_is_refused(self, given: str) -> None:
        """An unknown or lost name does not mean development, which requires no key."""
        [problem] = problems_of({"MLSDM_ENV": given, "API_KEY": "your-secret-key"})

        assert problem.startswith(f"MLSDM_ENV is {given!r}: expected one of dev, development, staging, production")


class TestOverrides:
    @pytest.mark.parametrize("key", SETTINGS)
    def test_every_setting_has_a_variable(self, key: str) -> None:
        """Its name is the dotted key in capitals, with two underscores for each dot."""
        assert SETTINGS[key].variable == f"MLSDM_{key.upper().replace('.', '__')}"
        if SETTINGS[key].default != "":
            assert load(None, {SETTINGS[key].variable: str(SETTINGS[key].default)}) == load(None, {})

    @pytest.mark.parametrize("key", SETTINGS)
    def test_every_setting_refuses_an_empty_variable(self, key: str) -> None:
        """An empty variable is a lost value, even for a setting that a file may leave empty."""
        for text in ("", " \n"):
            [problem] = problems_of({SETTINGS[key].variable: text})

            assert problem.startswith(f"{key} is empty ({SETTINGS[key].variable}): expected ")

    @pytest.mark.parametrize(
        ("variable", "text", "key", "value"),
        [
            ("MLSDM_CAPACITY", "1000", "capacity", 1000),
            ("MLSDM_CAPACITY", " 1_000\n", "capacity", 1000),
            ("MLSDM_MORAL_FILTER__EMA_ALPHA", "1", "moral_filter.ema_alpha", 1.0),
            ("MLSDM_MORAL_FILTER__EMA_ALPHA", "2e-1", "moral_filter.ema_alpha", 0.2),
            ("MLSDM_SECURITY__RATE_LIMITING__ENABLED", "1", "security.rate_limiting.enabled", True),
            ("MLSDM_SECURITY__RATE_LIMITING__ENABLED", "True", "security.rate_limiting.enabled", True),
            ("MLSDM_COGNITIVE_RHYTHM__ENABLE_CONSOLIDATION", "0", "cognitive_rhythm.enable_consolidation", False),
            ("MLSDM_COGNITIVE_RHYTHM__ENABLE_CONSOLIDATION", "false", "cognitive_rhythm.enable_consolidation", False),
            ("MLSDM_SERVER__HOST", "fe80::1%eth0", "server.host", "fe80::1%eth0"),
            ("MLSDM_SERVER__HOST", "a-b.example.org", "server.host", "a-b.example.org"),
            ("MLSDM_SERVER__TRUSTED_PROXIES", " ::1, 10.0.0.0/8 ", "server.trusted_proxies", "::1, 10.0.0.0/8"),
            ("MLSDM_SECURITY__KEYS_PATH", "/run/secrets/keys.yaml", "security.keys_path", "/run/secrets/keys.yaml"),
            ("MLSDM_IDEMPOTENCY_CAPACITY", "1024", "idempotency_capacity", 1024),
        ],
    )
    def test_variables_set_values(self, variable: str, text: str, key: str, value: object) -> None:
        """Numbers, switches and names are read in every allowed spelling."""
        assert decoded({variable: text})[key] == value

    @pytest.mark.parametrize("text", ["yes", "on", "2", "", "truth"])
    def test_switches_have_four_spellings(self, text: str) -> None:
        """0, 1, true and false are switches; anything else is refused."""
        [problem] = problems_of({"MLSDM_SECURITY__RATE_LIMITING__ENABLED": text})

        assert problem.startswith("security.rate_limiting.enabled is ")
        assert problem.endswith("(MLSDM_SECURITY__RATE_LIMITING__ENABLED): expected true or false (unit: switch)")

    @pytest.mark.parametrize("host", ["8", "127.1", "a b", "[::1]", "http://x", "x:80:y", "a" * 254, "127.0.0.1\nx"])
    def test_invalid_hosts_are_refused(self, host: str) -> None:
        """A host is an address or a name, and neither a number nor a URL."""
        assert len(problems_of({"HOST": host})) == 1


class TestUnknown:
    @pytest.mark.parametrize(
        ("variable", "hint"),
        [
            ("MLSDM_CAPACTY", "; did you mean MLSDM_CAPACITY?"),
            ("MLSDM_EMA_ALPHA", "; did you mean MLSDM_MORAL_FILTER__EMA_ALPHA?"),
            ("MLSDM_MORAL_FILTER_EMA_ALPHA", "; did you mean MLSDM_MORAL_FILTER__EMA_ALPHA?"),
            ("MLSDM_API_KEY", "; did you mean API_KEY?"),
            ("MLSDM_PORT", "; did you mean PORT?"),
            ("MLSDM_QQQQQQ", ""),
        ],
    )
    def test_an_unknown_name_is_refused_with_the_nearest(self, variable: str, hint: str) -> None:
        """A misspelt override is not ignored; its value, which may be a secret, is not shown."""
        [problem] = problems_of({variable: "very-secret"})

        assert problem == f"{variable} is unknown: expected MLSDM_<SECTION>__<KEY>{hint}"

    def test_service_links_are_ignored(self) -> None:
        """Kubernetes injects them for a service called mlsdm-api."""
        links = {
            "MLSDM_API_SERVICE_HOST": "10.0.0.1",
            "MLSDM_API_SERVICE_PORT": "80",
            "MLSDM_API_SERVICE_PORT_HTTP": "80",
            "MLSDM_API_PORT": "tcp://10.0.0.1:80",
            "MLSDM_API_PORT_80_TCP": "tcp://10.0.0.1:80",
            "MLSDM_API_PORT_80_TCP_ADDR": "10.0.0.1",
        }

        assert load(None, {}) == load(None, links)

    def test_other_names_are_ignored(self) -> None:
        """Only names with the prefix are examined."""
        assert load(None, {}) == load(None, {"PATH": "/bin", "_MLSDM_BLOCK": "7", "mlsdm_capacity": "1", "SERVER": "x"})


class TestPlain:
    @pytest.mark.parametrize(
        ("variable", "text", "key", "value"),
        [
            ("HOST", "::", "server.host", "::"),
            ("PORT", "0", "server.port", 0),
            ("WORKERS", "3", "server.workers", 3),
            ("LOG_LEVEL", "debug", "observability.logging.level", "DEBUG"),
            ("DISABLE_RATE_LIMIT", "1", "security.rate_limiting.enabled", False),
            ("DISABLE_RATE_LIMIT", "true", "security.rate_limiting.enabled", False),
        ],
    )
    def test_plain_names_override_prefixed_ones(self, variable: str, text: str, key: str, value: object) -> None:
        """A plain variable has the last word."""
        environ = {variable: text, SETTINGS[key].variable: str(SETTINGS[key].default), **PRODUCTION}

        assert decoded(environ)[key] == value

    @pytest.mark.parametrize("text", ["0", "false"])
    def test_disable_rate_limit_0_changes_nothing(self, text: str) -> None:
        """DISABLE_RATE_LIMIT=0 leaves the limits as configured, on or off."""
        enabled = [
            load(None, {**environ, "DISABLE_RATE_LIMIT": text}).config.security.rate_limiting.enabled
            for environ in ({}, PRODUCTION)
        ]

        assert enabled == [False, True]

    @pytest.mark.parametrize("variable", ["HOST", "PORT", "WORKERS", "LOG_LEVEL", "DISABLE_RATE_LIMIT", "CONFIG_PATH"])
    def test_an_empty_variable_is_refused(self, variable: str) -> None:
        """A lost value does not pass for a default."""
        [problem] = problems_of({variable: ""})

        assert "is empty" in problem
        assert variable in problem

    def test_problems_name_the_variable(self) -> None:
        """A problem has the dotted key, the value, the variable and the expectation."""
        levels = "DEBUG, INFO, WARNING, ERROR, CRITICAL"

        assert problems_of({"PORT": "65536", "LOG_LEVEL": "loud", "DISABLE_RATE_LIMIT": "maybe"}) == [
            "server.port is 65536 (PORT): expected a whole number from 0 to 65535 (unit: port)",
            f"observability.logging.level is loud (LOG_LEVEL): expected one of {levels} (unit: name)",
            "security.rate_limiting.enabled is maybe (DISABLE_RATE_LIMIT): expected true or false (unit: switch)",
        ]


class TestKey:
    @pytest.mark.parametrize("name", ["dev", "staging"])
    def test_api_key_is_optional_outside_production(self, name: str) -> None:
        """A blank key counts as unset; any other is used."""
        assert load(None, {"MLSDM_ENV": name, "API_KEY": "  "}).keyring.is_open
        assert load(None, {"MLSDM_ENV": name, "API_KEY": "k"}).keyring == Keyring("k")

    def test_surrounding_whitespace_is_dropped(self) -> None:
        """A secret made with `echo` ends in a newline, which no header can carry."""
        assert load(None, {"API_KEY": " key==\n"}).keyring == Keyring("key==")

    @pytest.mark.parametrize("key", ["very secret", "very\nsecret", "sécret", "secret\udcff", "secret\x00"])
    def test_a_key_that_no_header_can_carry_is_refused(self, key: str) -> None:
        """No client could present it; the problem does not show it."""
        [problem] = problems_of({"API_KEY": key})

        assert problem == "API_KEY has a character that no header can carry: expected visible ASCII without spaces"

    def test_the_key_is_not_shown(self) -> None:
        """The representation of the environment has no key."""
        assert "very-secret" not in repr(environment.read({"API_KEY": "very-secret"}))
