"""Trusted proxies: valid and invalid lists of addresses and networks."""

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.settings.config import SETTINGS, Config, trusted_proxies
from core.settings.proxies import UNIX, networks
from core.settings.setting import InvalidText
from core.startup import ConfigurationError, load

NEITHER = "which is neither an address nor a network"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ", []),
        ("127.0.0.1", ["127.0.0.1/32"]),
        ("10.0.0.0/8, 192.168.0.0/16,::1 , fd00::/8", ["10.0.0.0/8", "192.168.0.0/16", "::1/128", "fd00::/8"]),
        ("10.0.0.0/255.0.0.0", ["10.0.0.0/8"]),
        ("0.0.0.0/0,::/0", ["0.0.0.0/0", "::/0"]),
        ("::ffff:10.0.0.1", ["10.0.0.1/32"]),
        ("::ffff:10.0.0.0/104, ::ffff:0:0/96", ["10.0.0.0/8", "0.0.0.0/0"]),
    ],
)
def test_addresses_and_networks(text: str, expected: list[str]) -> None:
    """Both families, separated by commas with or without blanks; an address is a network of one."""
    assert list(networks(text)) == [ip_network(network) for network in expected]


def test_unix_sockets_have_a_word() -> None:
    """Peers on Unix sockets have no address."""
    assert networks("unix, 10.0.0.1") == (UNIX, ip_network("10.0.0.1"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("proxy.example.org", f"has proxy.example.org, {NEITHER}"),
        ("10.0.0.300", f"has 10.0.0.300, {NEITHER}"),
        ("010.0.0.1", f"has 010.0.0.1, {NEITHER}"),
        ("10.0.0.0/33", f"has 10.0.0.0/33, {NEITHER}"),
        ("10.0.0.1:80", f"has 10.0.0.1:80, {NEITHER}"),
        ("[::1]", f"has [::1], {NEITHER}"),
        ("fe80::1%eth0", f"has fe80::1%eth0, {NEITHER}"),
        ("*", f"has *, {NEITHER}"),
        ("10.0.0.1 10.0.0.2", f"has '10.0.0.1 10.0.0.2', {NEITHER}"),
        ("10.0.0.0/8,", "has an empty item"),
        ("10.0.0.1/8", "has 10.0.0.1/8, whose address has bits beyond its length (perhaps 10.0.0.0/8)"),
        ("a,::1,b\x00", f"has a, {NEITHER}; 'b\\x00', {NEITHER}"),
    ],
)
def test_every_invalid_item_is_named(text: str, what: str) -> None:
    """Each invalid item is listed with its fault."""
    with pytest.raises(InvalidText) as refusal:
        networks(text)

    assert str(refusal.value) == what


def test_the_refusal_names_the_setting_and_the_item() -> None:
    """The refusal shows the invalid item of a long list, not the list."""
    good = ",".join(f"10.{n}.0.0/16" for n in range(100))
    with pytest.raises(ConfigurationError) as refusal:
        load(None, {"MLSDM_SERVER__TRUSTED_PROXIES": f"{good},10.256.0.0/16"})

    assert str(refusal.value) == (
        f"server.trusted_proxies has 10.256.0.0/16, {NEITHER} (MLSDM_SERVER__TRUSTED_PROXIES): "
        "expected addresses, networks such as 10.0.0.0/8, and unix for Unix sockets, separated by commas "
        "(unit: networks)"
    )


def test_no_proxy_is_trusted_by_default() -> None:
    """The default trusts no forwarding header."""
    assert trusted_proxies(Config()) == ()
    assert SETTINGS["server.trusted_proxies"].default == ""


ADDRESSES = st.ip_addresses().map(
    lambda address: getattr(address, "ipv4_mapped", None) or address
)  # as the gate has them


@settings(max_examples=200, deadline=None)
@given(listed=st.lists(ADDRESSES, max_size=5), length=st.integers(0, 32), other=ADDRESSES)
def test_exactly_the_members_are_trusted(listed: list[object], length: int, other: object) -> None:
    """Holds for any list of addresses and of networks around them."""
    spelled = [str(address) for address in listed]
    spelled += [str(ip_network(f"{address}/{length}", strict=False)) for address in listed]
    config = load(None, {"MLSDM_SERVER__TRUSTED_PROXIES": ",".join(spelled)} if spelled else {}).config
    trusted = trusted_proxies(config)

    for address in listed:
        assert any(address in network for network in trusted)
    assert any(other in ip_network(text) for text in spelled) == any(other in network for network in trusted)
