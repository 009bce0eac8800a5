"""HTTP as far as we read it ourselves: parameters of queries and forms, and headers that say where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlencode

from tests.fuzz.target import Target, words
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest
from vmstackd.daemon import http, http_values

_CALLS: tuple[tuple[Callable[..., requests.Request], tuple[str, ...]], ...] = (
    (requests.Deploy, ("name", "cpu", "mem", "oc", "qcow2")),
    (requests.Progress, ("cpu", "mem", "oc")),
    (requests.Remove, ("name",)),
)


def take(data: bytes) -> None:
    """The first byte says which call it is; the rest is a query as aiohttp gives it, or a header."""
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogateescape")
    http._site(text)
    assert http._host_name(text) == http._host_name(text).lower()
    kind, wanted = _CALLS[data[0] % len(_CALLS)]
    try:
        given = http_values.parameters(text, wanted, "/example")
        requests.check(kind(**http_values.read(given)))
    except InvalidRequest as error:
        json.dumps(error.details)
        return
    assert tuple(sorted(given)) == tuple(sorted(wanted))
    try:
        encoded = urlencode(dict(given))
    except UnicodeEncodeError:
        return  # bytes that are no text, as names of VMs may hold
    assert http_values.parameters(encoded, wanted, "/example") == given


_WORDS = """
name=
cpu=
mem=
oc=
qcow2=
&
%2F
%41
%ff
+
=/
1.5
64
0.001
http://
[::1]:8099
localhost:8099
"""
TARGET = Target(
    take,
    words=words(_WORDS),
    longest=1024,
)
