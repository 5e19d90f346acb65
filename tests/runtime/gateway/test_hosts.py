"""Names and addresses: what is admitted, and what never is. Pure, so tried with everything."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.gateway.decisions import harmless
from agent_runtime.gateway.hosts import Authority, authority, is_admitted, is_name, is_public
from agent_runtime.needs import Egress

LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PORTS = st.integers(1, 65535)

RULES = ("pypi.org", "*.pythonhosted.org", "git.example.com:22", "*.Example.net:8443")


@pytest.mark.parametrize(
    ("wanted", "may"),
    [
        ("pypi.org:443", True),
        ("PyPI.org:443", True),
        ("pypi.org:80", False),
        ("pypi.org:22", False),
        ("xpypi.org:443", False),
        ("pypi.org.evil.com:443", False),
        ("sub.pypi.org:443", False),
        ("files.pythonhosted.org:443", True),
        ("a.b.pythonhosted.org:443", True),
        ("pythonhosted.org:443", False),
        ("evilpythonhosted.org:443", False),
        ("git.example.com:22", True),
        ("git.example.com:443", False),
        ("x.example.net:8443", True),
    ],
)
def test_a_host_is_admitted_by_its_exact_name_and_port(wanted: str, may: bool):
    asked = authority(wanted)
    assert asked is not None
    assert is_admitted(Egress(hosts=RULES).hosts, asked) is may


@given(NAMES, PORTS)
def test_a_rule_admits_itself_and_nothing_near_it(name: str, port: int):
    rule = (f"{name}:{port}",)
    assert is_admitted(rule, Authority(name, port))
    assert not is_admitted((), Authority(name, port))
    for other in (f"x{name}", f"{name}x", f"x.{name}", f"{name}.x"):
        assert not is_admitted(rule, Authority(other, port))
    assert not is_admitted(rule, Authority(name, port % 65535 + 1))


@given(NAMES, NAMES)
def test_a_wildcard_admits_what_lies_below_it_and_nothing_else(name: str, below: str):
    rule = (f"*.{name}",)
    assert is_admitted(rule, Authority(f"{below}.{name}", 443))
    assert not is_admitted(rule, Authority(name, 443))
    assert not is_admitted(rule, Authority(below + name, 443))
    assert not is_admitted(rule, Authority(f"{below}.{name}.longer-than-labels", 443))


@given(st.text(max_size=80))
def test_whatever_is_asked_for_is_a_plain_name_with_a_port_or_nothing(text: str):
    for wanted in (text, f"{text}:443", f"pypi.org{text}:443", f"pypi.org:{text}"):
        asked = authority(wanted)
        if asked is not None:
            assert is_name(asked.host)
            assert 1 <= asked.port <= 65535
            with pytest.raises(ValueError, match=r".*"):
                ipaddress.ip_address(asked.host)


@pytest.mark.parametrize(
    "wanted",
    [
        "127.0.0.1:443", "127.1:443", "2130706433:443", "0x7f000001:443", "0x7f.1:443", "017700000001:443",
        "[::1]:443", "::1:443", "[::ffff:127.0.0.1]:443", "1.2.3.4:443", "8.8.8.8:443", "a.0x1:80", "a.1:80",
        "pypi.org", "pypi.org:", "pypi.org:0", "pypi.org:65536", "pypi.org:443:443", "pypi.org:-1",
        "pypi.org:+443", "pypi.org.:443", ".pypi.org:443", "pypi..org:443", "-a.org:443", "a_b.org:443",
        "user@pypi.org:443", "pypi.org/x:443", "https://pypi.org:443", "pypi.org%00.evil.com:443",
        "pypi.org\x00:443", "\uff50ypi.org:443", "pypi.org:\u0664\u0664",
        " pypi.org:443", "pypi.org:443\n", "*.org:443",
        "a" * 64 + ".org:443", "a." * 130 + "org:443", "",
    ],
)  # fmt: skip
def test_addresses_and_misspelled_names_are_no_names(wanted: str):
    assert authority(wanted) is None


@given(st.ip_addresses(v=4))
def test_no_address_passes_that_the_registry_calls_special(address: ipaddress.IPv4Address):
    if is_public(str(address)):
        assert address.is_global
        special = (address.is_private, address.is_multicast, address.is_reserved, address.is_loopback)
        assert not any((*special, address.is_link_local, address.is_unspecified))


@given(st.ip_addresses(v=6))
def test_no_six_passes_that_is_special_or_hides_a_four(address: ipaddress.IPv6Address):
    if is_public(str(address)):
        assert address.is_global
        assert not any((address.is_private, address.is_multicast, address.is_reserved))
        assert address.ipv4_mapped is None
        assert address.sixtofour is None
        assert address.teredo is None


@given(st.ip_addresses(v=4))
def test_a_four_in_the_shape_of_a_six_never_passes(four: ipaddress.IPv4Address):
    number = int(four)
    for high in (0, 0xFFFF << 32, 0xFFFF_0000 << 32, 0x64_FF9B << 96, (0x64_FF9B_0001 << 80)):
        assert not is_public(str(ipaddress.IPv6Address(high | number)))
    assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | number << 80)))
    assert not is_public(str(ipaddress.IPv6Address(0x2001_0000 << 96 | number ^ 0xFFFFFFFF)))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::8.8.8.8", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1", "100::1", "", "x", "8.8.8.8:443", "8.8.8", "08.8.8.8", "2606:4700::1%1",
    ],
)  # fmt: skip
def test_addresses_of_machines_and_clouds_own_are_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.0.223", "172.32.0.1", "2606:4700::6810:84e5"])
def test_addresses_of_the_internet_are_public(address: str):
    assert is_public(address)


@given(st.text())
def test_what_is_logged_is_one_bounded_line_of_printable_letters(text: str):
    said = harmless(text)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) <= 260 * 10
