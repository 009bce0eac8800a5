"""An HTTP endpoint as OpenAPI 3.1, described by the tables that it is made of: routes, parameters, errors, answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from vmstackd.api.errors import ERRORS, Internal, InvalidRequest
from vmstackd.daemon import http_values
from vmstackd.daemon.http_routes import FORM, REQUEST_ID, Route
from vmstackd.version import VERSION

_JSON = "application/json"
_SCHEMAS = "#/components/schemas/{name}"
_REQUEST_ID = {
    "description": "That of the request, if it has a proper one; it stands in the log.",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID}$"},
}
_EXPECTED = tuple(kind for kind in ERRORS if kind is not Internal)
"""A mistake of ours is not part of any description."""


class Refused(msgspec.Struct, frozen=True):
    """Why it was not done: reason in the prototype's words, error a code, message for people. More may stand beside."""

    success: Literal[False]
    reason: str
    error: str
    message: str


def description(program: str, routes: Mapping[str, Route]) -> dict[str, Any]:
    """The whole document."""
    types = [route.answer for route in routes.values()]
    schemas, components = msgspec.json.schema_components([*types, Refused], ref_template=_SCHEMAS)
    components["Refused"]["properties"]["error"]["enum"] = [kind.code for kind in _EXPECTED]
    components["Refused"]["additionalProperties"] = {"type": ["string", "integer"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": program,
            "version": VERSION,
            "description": "Everybody who reaches the port may read. Of the users of this machine, those may change "
            "something who may over its Unix socket; from elsewhere, everybody may.",
        },
        "paths": {
            path: _path(path, route, schema, schemas[-1])
            for (path, route), schema in zip(routes.items(), schemas, strict=False)
        },
        "components": {
            "schemas": components,
            "responses": _refusals(schemas[-1]),
            "headers": {"RequestId": _REQUEST_ID},
        },
    }


def _path(path: str, route: Route, answer: Mapping[str, Any], refused: Mapping[str, Any]) -> dict[str, Any]:
    name = path.strip("/").partition(".")[0] or "welcome"
    found = {}
    for method in ("get", "post"):
        operation: dict[str, Any] = {"operationId": f"{method}-{name}", "summary": route.about}
        if method == "get" and route.parameters:
            operation["parameters"] = [_in_query(parameter) for parameter in route.parameters]
        elif route.parameters:
            operation["requestBody"] = _as_form(route.parameters)
        operation["responses"] = _responses(route, answer, refused)
        found[method] = operation
    return found


def _in_query(name: str) -> dict[str, Any]:
    parameter = http_values.PARAMETERS[name]
    return {
        "name": name,
        "in": "query",
        "required": True,
        "description": parameter.about,
        "schema": dict(parameter.schema),
    }


def _as_form(names: Iterable[str]) -> dict[str, Any]:
    parameters = {name: http_values.PARAMETERS[name] for name in names}
    schema = {
        "type": "object",
        "properties": {
            name: {**parameter.schema, "description": parameter.about} for name, parameter in parameters.items()
        },
        "required": list(parameters),
        "additionalProperties": False,
    }
    return {"required": True, "content": {FORM: {"schema": schema}}}


def _responses(route: Route, answer: Mapping[str, Any], refused: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"200": _response("Done.", route.media, answer)}
    found |= {status: {"$ref": f"#/components/responses/{status}"} for status in _refusals(refused)}
    if route.unwell:
        status = str(HTTPStatus.SERVICE_UNAVAILABLE.value)
        found[status] = _response("All is not well, or not now.", _JSON, {"anyOf": [answer, refused]})
    return found


def _refusals(refused: Mapping[str, Any]) -> dict[str, Any]:
    """Responses by status, alike for all calls."""
    codes: dict[int, list[str]] = {}
    for kind in _EXPECTED:
        codes.setdefault(kind.http_status, []).append(kind.code)
    codes[HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value] = [InvalidRequest.code]
    return {str(status): _response(f"{', '.join(codes[status])}.", _JSON, refused) for status in sorted(codes)}


def _response(about: str, media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": about,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
        "content": {media: {"schema": dict(schema)}},
    }
