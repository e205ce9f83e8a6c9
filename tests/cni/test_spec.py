"""A call becomes an Invocation or a CniError with the specification's code, whatever was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import cni
from cni import spec, untrusted

ENV: Mapping[str, str] = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0a1b2c",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
}
CONFIG = {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", "mtu": "9001"}


def stdin(**changes: object) -> bytes:
    """A good configuration with these keys set, or left out where the value is ..."""
    config = CONFIG | {"prevResult": {}} | changes
    return json.dumps({key: value for key, value in config.items() if value is not ...}).encode()


def refused(env: Mapping[str, str], text: bytes) -> spec.CniError:
    with pytest.raises(spec.CniError) as caught:
        spec.parse(env, text)
    assert caught.value.msg
    assert caught.value.details.endswith((".", "needs it."))
    return caught.value


def test_a_good_call_is_taken_apart() -> None:
    call = spec.parse(ENV, stdin())
    assert (call.verb, call.container_id, call.netns) == ("ADD", "0a1b2c", "/run/netns/x")
    assert (call.ifname, call.path) == ("eth0", "/opt/cni/bin")
    assert (call.pod, call.pod_uid) == (("shop", "web"), "u")
    assert (call.config.cni_version, call.config.name) == ("1.1.0", "aws-cni")
    assert call.config.raw["mtu"] == "9001"
    assert call.attachments is None


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_every_version_may_add_and_delete(version: str) -> None:
    for verb in ("ADD", "DEL"):
        call = spec.parse({**ENV, "CNI_COMMAND": verb}, stdin(cniVersion=version))
        assert call.config.cni_version == version


@pytest.mark.parametrize(
    ("verb", "first"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")]
)
def test_a_verb_is_refused_below_the_version_that_brought_it(verb: str, first: str) -> None:
    env = {**ENV, "CNI_COMMAND": verb}
    for version in spec.VERSIONS:
        text = stdin(cniVersion=version, **{spec.ATTACHMENTS_KEY: []})
        if spec.VERSIONS.index(version) < spec.VERSIONS.index(first):
            assert refused(env, text).code == spec.INCOMPATIBLE_VERSION
        else:
            assert spec.parse(env, text).verb == verb


NEEDED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": {"CNI_PATH"},
}


@pytest.mark.parametrize("verb", spec.VERBS)
@pytest.mark.parametrize("gone", [name for name in ENV if name != "CNI_COMMAND"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_variable_may_be_missing_only_where_the_verb_needs_it_not(
    verb: str, gone: str, empty: bool
) -> None:
    env = {**ENV, "CNI_COMMAND": verb, gone: ""}
    if not empty:
        del env[gone]
    text = stdin(**{spec.ATTACHMENTS_KEY: []})
    if gone in NEEDED[verb]:
        error = refused(env, text)
        assert (error.code, gone in error.msg) == (spec.INVALID_ENVIRONMENT, True)
    else:
        assert spec.parse(env, text).verb == verb


@pytest.mark.parametrize("verb", ["", "add", "ADD ", "UPDATE", "VERSION", "\x00"])
def test_an_unknown_verb_is_refused(verb: str) -> None:
    assert refused({**ENV, "CNI_COMMAND": verb}, stdin()).code == spec.INVALID_ENVIRONMENT


@pytest.mark.parametrize(
    "name",
    ["sixteen-letters-", "ä" * 8, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u2028b", "a\nb"],
)
def test_an_interface_name_the_kernel_would_refuse_is_refused(name: str) -> None:
    assert refused({**ENV, "CNI_IFNAME": name}, stdin()).code == spec.INVALID_ENVIRONMENT


@pytest.mark.parametrize("name", ["e", "fifteen-letters", "eth0.105", "...", "ä" * 7])
def test_an_interface_name_the_kernel_takes_is_taken(name: str) -> None:
    assert spec.parse({**ENV, "CNI_IFNAME": name}, stdin()).ifname == name


@pytest.mark.parametrize("value", ["-a", ".a", "a/b", "a b", "ä", "a\n", "a\x00", "../x"])
def test_a_container_id_must_be_an_identifier(value: str) -> None:
    assert refused({**ENV, "CNI_CONTAINERID": value}, stdin()).code == spec.INVALID_ENVIRONMENT


@pytest.mark.parametrize("args", ["K8S_POD_NAME", "a=1;;b=2", "=1", "a=1;a=2", "a=1;", ";"])
def test_args_must_be_pairs(args: str) -> None:
    assert refused({**ENV, "CNI_ARGS": args}, stdin()).code == spec.INVALID_ENVIRONMENT


def test_args_keep_what_follows_the_first_equals_sign() -> None:
    assert spec.parse_args("a=b=c;d=") == {"a": "b=c", "d": ""}


@pytest.mark.parametrize("version", [..., None, 1, "", "0.2.0", "0.1.0", "1.2.0", "1.0", ["1.0.0"]])
def test_a_version_not_spoken_is_refused(version: object) -> None:
    assert refused(ENV, stdin(cniVersion=version)).code == spec.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("name", [..., None, 7, "", "-a", "a b", "a/b", "ä", "a\n"])
def test_a_network_name_must_be_an_identifier(name: object) -> None:
    assert refused(ENV, stdin(name=name)).code == spec.INVALID_CONFIG


@pytest.mark.parametrize("previous", [[], "x", 1, True])
def test_prev_result_must_be_an_object(previous: object) -> None:
    assert refused(ENV, stdin(prevResult=previous)).code == spec.INVALID_CONFIG


def test_check_needs_prev_result_and_del_does_not() -> None:
    text = stdin(prevResult=...)
    assert refused({**ENV, "CNI_COMMAND": "CHECK"}, text).code == spec.INVALID_CONFIG
    assert spec.parse({**ENV, "CNI_COMMAND": "DEL"}, text).config.prev_result is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{} {}",
        b"\xff\xfe{}",
        b'{"name": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"name": "a", "name": "b"}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\u0000"}',
        b'{"a": ["\\ud800"]}',
        b'{"\\udc00": 1}',
        b"\0",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"a": "' + b"x" * spec.MAX_STDIN + b'"}',
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_not_plain_bounded_json_is_a_decoding_failure(text: bytes) -> None:
    assert refused(ENV, text).code == spec.DECODING_FAILURE
    assert spec.version_of(text) == spec.FALLBACK_VERSION


def test_escaped_text_that_only_looks_hostile_is_taken() -> None:
    """A backslash before u0000 and a whole surrogate pair are ordinary text."""
    call = spec.parse(ENV, stdin(note="\\u0000", emoji="\U0001f600"))
    assert (call.config.raw["note"], call.config.raw["emoji"]) == ("\\u0000", "\U0001f600")


def test_gc_lists_the_attachments_in_use() -> None:
    env = {**ENV, "CNI_COMMAND": "GC"}
    pairs = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    call = spec.parse(env, stdin(**{spec.ATTACHMENTS_KEY: pairs}))
    assert call.attachments == frozenset({("a", "eth0"), ("b", "net1")})
    assert spec.parse(env, stdin(**{spec.ATTACHMENTS_KEY: []})).attachments == frozenset()


@pytest.mark.parametrize(
    "value",
    [
        ...,
        None,
        {},
        "a",
        [None],
        ["a"],
        [{}],
        [{"containerID": "a"}],
        [{"containerID": 1, "ifname": ""}],
    ],
)
def test_gc_without_a_sound_list_is_refused(value: object) -> None:
    """Otherwise "all are gone" could not be told from "I was not told"."""
    error = refused({**ENV, "CNI_COMMAND": "GC"}, stdin(**{spec.ATTACHMENTS_KEY: value}))
    assert error.code == spec.INVALID_CONFIG


def test_an_error_is_told_in_the_callers_version() -> None:
    text = stdin(cniVersion="0.4.0", name="")
    told = json.loads(refused(ENV, text).render(spec.version_of(text)))
    assert told["cniVersion"] == "0.4.0"
    assert told["code"] == spec.INVALID_CONFIG
    assert set(told) == {"cniVersion", "code", "msg", "details"}
    assert "details" not in json.loads(spec.CniError(5, "so").render())


def test_the_launcher_names_the_same_versions() -> None:
    source = Path(cni.__file__).with_name("launcher.c").read_text()
    listed = re.search(r'\[((?:\\"[\d.]+\\",?)+)\]', source)
    assert listed
    assert tuple(re.findall(r"[\d.]+", listed[1])) == spec.VERSIONS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["cniVersion", "name", "prevResult", spec.ATTACHMENTS_KEY, "x"])
HOSTILE = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(KEYS, JSON | st.sampled_from(spec.VERSIONS)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.tuples(st.integers(0, 120), st.binary(max_size=8)).map(lambda t: stdin()[: t[0]] + t[1]),
)


@given(
    env=st.dictionaries(
        st.sampled_from([*ENV, "CNI_OTHER"]), st.sampled_from(spec.VERBS) | st.text(max_size=20)
    ),
    text=HOSTILE,
)
@example(env=dict(ENV), text=b"{" * 2_000)
def test_nothing_but_an_invocation_or_a_cni_error_comes_of_any_call(
    env: dict[str, str], text: bytes
) -> None:
    """Whatever comes back can be written in JSON and UTF-8, the error's text included."""
    outcome: spec.Invocation | spec.CniError
    try:
        outcome = spec.parse({**ENV, **env}, text)
    except spec.CniError as error:
        outcome = error
    if isinstance(outcome, spec.CniError):
        assert outcome.code in range(1, 9)
        assert json.loads(outcome.render(spec.version_of(text)))["msg"] == outcome.msg
    else:
        json.dumps(dict(outcome.config.raw), ensure_ascii=False, allow_nan=False).encode()
        assert outcome.config.cni_version == spec.version_of(text)


@given(value=JSON)
def test_an_object_is_taken_unchanged_or_refused(value: object) -> None:
    text = json.dumps({"value": value}).encode()
    try:
        loaded = untrusted.load_object(text, largest=1 << 20)
    except ValueError:
        return
    assert loaded == {"value": value}
