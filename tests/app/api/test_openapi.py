"""What the document says of the running server. test_schemathesis.py finds out if it is true."""

import re
from typing import Any

import httpx
import pytest

from app.api.openapi import numbers_to
from app.api.validation import MODEL_LIMIT
from tests.server import RunningServer

Object = dict[str, Any]


@pytest.fixture(scope="module")
def document(tiny_server: RunningServer) -> Object:
    found: Object = httpx.get(f"{tiny_server.url}/openapi.json").json()
    return found


@pytest.mark.parametrize("last", [0, 1, 5, 9, 10, 19, 99, 100, 255, 49151, 151935])
def test_the_pattern_of_the_numbers_to_another(last: int) -> None:
    pattern = re.compile(numbers_to(last))
    assert [n for n in range(last + 2000) if pattern.fullmatch(str(n))] == list(range(last + 1))
    assert not any(pattern.fullmatch(text) for text in ("", "-1", "00", "01", " 1", "1.0"))


def test_the_models_numbers_are_in_it(tiny_server: RunningServer, document: Object) -> None:
    schemas = document["components"]["schemas"]
    fields = schemas["GenerateBody"]["properties"]
    assert fields["max_length"]["maximum"] == 511
    assert fields["stop_token_ids"]["items"]["maximum"] == 255
    assert re.search(fields["logit_bias"]["propertyNames"]["pattern"], "255")
    assert not re.search(fields["logit_bias"]["propertyNames"]["pattern"], "256")
    assert fields["seed"]["anyOf"][0]["maximum"] == 2**63 - 1, "to the last digit"
    name = httpx.get(f"{tiny_server.url}/version").json()["model"]
    chat = schemas["ChatBody"]["properties"]
    assert chat["model"]["anyOf"][0]["enum"] == [name]
    assert chat["tools"]["anyOf"][0]["maxItems"] == 0, "it has not learned to call any"
    assert MODEL_LIMIT not in str(document)


def test_without_keys_none_is_wanted(document: Object) -> None:
    assert "securitySchemes" not in document["components"]
    for path in document["paths"].values():
        for operation in path.values():
            assert not operation.get("security")
            assert "401" not in operation["responses"]


def test_every_refusal_has_our_shape(document: Object) -> None:
    ours = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for path in document["paths"].values():
        for operation in path.values():
            refusals = {s: a for s, a in operation["responses"].items() if s >= "400"}
            assert refusals.keys() >= {"400", "414", "421", "431", "500"}
            assert all(answer["content"] == ours for answer in refusals.values())


def test_a_method_that_is_not_there_is_told_those_that_are(
    tiny_server: RunningServer, document: Object
) -> None:
    for path, operations in document["paths"].items():
        url = tiny_server.url + re.sub("{.*?}", "x", path)
        refused = httpx.request("PATCH", url)
        assert refused.status_code == 405
        methods = {method.upper() for method in operations}
        methods |= {"HEAD"} if "GET" in methods else set()
        assert refused.headers["allow"] == ", ".join(sorted(methods))
