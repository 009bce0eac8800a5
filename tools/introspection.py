"""Writes systemd/dbus/org.vmstack.Host1.xml from the tables that the daemon serves: ``make introspection``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from vmstackd.transports.dbus_interfaces import INTERFACES, Interface, Method, Property, Signal

FILE = Path(__file__).resolve().parent.parent / "systemd" / "dbus" / "org.vmstack.Host1.xml"

HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<!-- Written by make introspection. -->
<node>"""


def document() -> str:
    """The file."""
    return "\n".join((HEAD, *(line for interface in INTERFACES for line in _interface(interface)), "</node>", ""))


def _interface(interface: Interface) -> Iterator[str]:
    yield f' <interface name="{interface.name}">'
    for method in interface.methods:
        yield from _method(method)
    for prop in interface.properties:
        yield from _property(prop)
    for signal in interface.signals:
        yield from _signal(signal)
    yield " </interface>"


def _method(method: Method) -> Iterator[str]:
    yield f"  <!-- {escape(method.text)} -->"
    arguments = [
        *_arguments(method.takes, method.takes_names, ' direction="in"'),
        *_arguments(method.returns, method.returns_names, ' direction="out"'),
    ]
    yield from _element("method", method.name, arguments)


def _property(prop: Property) -> Iterator[str]:
    yield f"  <!-- {escape(prop.text)} -->"
    head = f'  <property name="{prop.name}" type="{prop.signature}" access="read"'
    if prop.emits == "true":
        yield f"{head}/>"
    else:
        yield f"{head}>"
        yield f'   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="{prop.emits}"/>'
        yield "  </property>"


def _signal(signal: Signal) -> Iterator[str]:
    yield f"  <!-- {escape(signal.text)} -->"
    yield from _element("signal", signal.name, _arguments(signal.signature, signal.names, ""))


def _element(kind: str, name: str, arguments: Sequence[str]) -> Iterator[str]:
    if arguments:
        yield f'  <{kind} name="{name}">'
        yield from arguments
        yield f"  </{kind}>"
    else:
        yield f'  <{kind} name="{name}"/>'


def _arguments(signature: str, names: Sequence[str], direction: str) -> list[str]:
    types = list(_complete_types(signature))
    return [f'   <arg type="{kind}" name="{name}"{direction}/>' for kind, name in zip(types, names, strict=True)]


def _complete_types(signature: str) -> Iterator[str]:
    """A signature, value by value."""
    begin = depth = 0
    for position, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            yield signature[begin : position + 1]
            begin = position + 1


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
