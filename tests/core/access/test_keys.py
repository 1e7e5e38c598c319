"""The keyring: it identifies exactly the tokens whose digests it holds, at equal cost for every text."""

import hashlib
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.access import keys
from core.access.keys import API_KEY_ID, Key, Keyring, Role, token_digest
from core.settings.tiers import STANDARD, TIERS
from core.startup import load

NOW = 1_800_000_000.0
SECRET = "x" * 43


def key_of(token: str, role: Role = Role.READ, tier: str = "high", expires: float = math.inf) -> Key:
    return Key(token.partition(".")[0], role, tier, token_digest(token), expires)


WEB, OPS, OLD = f"web.{SECRET}", f"ops.{SECRET}", f"old.{SECRET}"
RING = Keyring("api.key", [key_of(WEB), key_of(OPS, Role.ADMIN, "bulk"), key_of(OLD, expires=NOW)])


class TestRole:
    def test_roles_ascend(self) -> None:
        """Each role includes the permissions of those below it."""

        assert sorted(Role) == [Role.READ, Role.WRITE, Role.ADMIN]
        assert tuple(Role) == (1, 2, 3)


class TestIdentify:
    def test_a_token_opens_its_own_key(self) -> None:
        """The key has the id, role and tier of the file."""
        found = [RING.identify(token, NOW) for token in (WEB, OPS)]

        assert [key[:3] for key in found if key] == [("web", Role.READ, "high"), ("ops", Role.ADMIN, "bulk")]

    @pytest.mark.parametrize("token", ["plain", "web.of.the.environment", ".", "web.", "ops", "a b", "é", "=" * 300])
    def test_the_api_key_may_be_any_text(self, token: str) -> None:
        """API_KEY may have dots, even if the text before the first dot is an id of the file."""
        ring = Keyring(token, [key_of(WEB), key_of(OPS)])
        found = ring.identify(token, NOW)

        assert found is not None
        assert (API_KEY_ID, Role.WRITE, "bulk", math.inf) == (found.id, found.role, found.tier, found.expires)
        assert ring.identify(WEB, NOW) == key_of(WEB)

    @pytest.mark.parametrize("tier", TIERS)
    def test_the_api_key_has_the_tier_of_the_settings(self, tier: str) -> None:
        """A reload with another tier is another keyring."""
        loaded = load(None, {"API_KEY": "k7", "MLSDM_SECURITY__API_KEY_TIER": tier})

        found = loaded.keyring.identify("k7", NOW)

        assert found is not None
        assert found.tier == tier
        assert (loaded.keyring == load(None, {"API_KEY": "k7"}).keyring) == (tier == "bulk")

    @pytest.mark.parametrize(
        "token",
        [
            *(
                "",
                ".",
                "web",
                "web.",
                f".{SECRET}",
                SECRET,
                f"WEB.{SECRET}",
                f" {WEB}",
                f"{WEB} ",
                f"{WEB}.",
                f"{WEB}\n",
            ),
            *(WEB[:-1], f"ops.web.{SECRET}", "api", "api.", "api.ke", "api.key.", "API_KEY", "API_KEY.api.key"),
            *(
                "\udcff",
                "web.\ud800",
                "é",
                "\x00",
                token_digest(WEB).hex(),
                f"web.{token_digest(WEB).hex()}",
                "x" * 8_000,
            ),
        ],
    )
    def test_any_other_text_opens_no_key(self, token: str) -> None:
        """Parts of a token, extensions of a token and digests open nothing, and nothing raises."""
        assert RING.identify(token, NOW) is None

    def test_a_key_expires_at_its_second(self) -> None:
        """It opens until that second, and from then on it does not, without a reload."""
        assert RING.identify(OLD, NOW - 1e-6) is not None
        assert RING.identify(OLD, NOW) is None
        assert RING.identify(OLD, math.inf) is None
        assert RING.expired(NOW) == ["old"]
        assert RING.expired(NOW - 1) == []

    def test_the_digest_is_that_of_the_bytes_sent(self) -> None:
        """`sha256sum` of the token gives the same digest."""
        assert hashlib.sha256(WEB.encode("ascii")).digest() == token_digest(WEB)

    def test_a_ring_without_keys_is_open(self) -> None:
        """It identifies no token; `is_open` grants access to every client."""
        assert Keyring().is_open
        assert Keyring("").is_open
        assert Keyring().identify("", NOW) is None
        assert (len(Keyring()), len(Keyring("k")), len(RING)) == (0, 1, 4)

    def test_a_ring_of_expired_keys_is_not_open(self) -> None:
        """The server stays closed when its last key expires."""
        assert not Keyring(None, [key_of(OLD, expires=0.0)]).is_open

    @pytest.mark.parametrize("wrong", [[key_of(WEB), key_of("web.y")], [key_of("API_KEY.x")]])
    def test_ids_are_unique(self, wrong: list[Key]) -> None:
        """A duplicate id, or that of API_KEY, is a programming error: the reader of the file has checked them."""
        with pytest.raises(AssertionError):
            Keyring("k", wrong)


class TestPains:
    @pytest.mark.parametrize("ring", [Keyring(), Keyring("k"), Keyring(None, [key_of(WEB)]), RING], ids=len)
    @pytest.mark.parametrize(
        "token", [WEB, OLD, "api.key", "web.wrong", "nobody.wrong", "", ".", "é.", "\ud800", "no-dot", "." * 8_000]
    )
    def test_every_token_costs_one_hash_and_two_comparisons(
        self, monkeypatch: pytest.MonkeyPatch, ring: Keyring, token: str
    ) -> None:
        """Counted and not timed, for known, expired, unknown and malformed tokens."""
        calls: list[str] = []

        def counted(name: str) -> None:
            function = getattr(keys, name)

            def call(*arguments: Any) -> Any:
                calls.append(name if name == "sha256" else f"{name} {[len(argument) for argument in arguments]}")
                return function(*arguments)

            monkeypatch.setattr(keys, name, call)

        counted("sha256")
        counted("compare_digest")
        ring.identify(token, NOW)

        assert calls == ["sha256", "compare_digest [32, 32]", "compare_digest [32, 32]"]


class TestSecrecy:
    def test_printing_shows_no_secret(self) -> None:
        """Neither repr, str nor format of a key or a ring has a digest or a token."""
        key = key_of(WEB)
        shown = f"{key!r} {key!s} {key} {RING!r} {RING!s} {RING} {[key]} {(RING,)}"

        for secret in (repr(key.digest), key.digest.hex(), SECRET, "api.key"):
            assert secret not in shown
        assert repr(key) == "Key(id='web', role=READ, tier='high', expires=inf)"
        assert repr(RING) == "Keyring(4 keys)"

    def test_rings_are_compared_by_their_keys(self) -> None:
        """A reload can tell whether the keys have changed."""
        assert Keyring("k", [key_of(WEB)]) == Keyring("k", [key_of(WEB)])
        assert hash(Keyring("k", [key_of(WEB)])) == hash(Keyring("k", [key_of(WEB)]))
        for other in (Keyring(), Keyring("k"), Keyring("l", [key_of(WEB)]), Keyring("k", [key_of(WEB, Role.ADMIN)]), 1):
            assert Keyring("k", [key_of(WEB)]) != other


TOKENS = st.one_of(
    st.text(alphabet="ab.é\ud800", max_size=5),
    st.builds("{}.{}".format, st.sampled_from(["a", "b", "c"]), st.text(alphabet="ab.", max_size=3)),
)


@settings(max_examples=500, deadline=None)
@example(known=["a.é"], api_key="?", tried=["a.?", "a.\ud800", "é", "\ud800"])
@given(known=st.lists(TOKENS, max_size=6), api_key=st.none() | TOKENS, tried=st.lists(TOKENS, max_size=6))
def test_exactly_the_tokens_of_the_ring_are_known(known: list[str], api_key: str | None, tried: list[str]) -> None:
    """Holds for any ring and any text, near misses included."""
    named = {token.partition(".")[0]: token for token in known if "." in token and token != api_key}
    ring = Keyring(api_key, [key_of(token) for token in named.values()])
    opened = {*named.values(), *([api_key] if api_key else [])}

    for token in [*tried, *known, *opened]:
        found = ring.identify(token, NOW)
        assert (token in opened) == (found is not None)
        if found is not None:
            assert token_digest(token) == found.digest


def test_the_tiers_are_named_once() -> None:
    """STANDARD, the tier of API_KEY, is one of TIERS."""
    assert TIERS == ("standard", "high", "bulk")
    assert STANDARD in TIERS
