"""The OpenAPI document against the running server: no 500, and nothing that the document doesn't say."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from tests.support.server import Server

EXAMPLES = 30
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def operations(server: Server) -> list[schemathesis.APIOperation]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


def test_no_request_makes_a_500_or_breaks_the_document(server: Server) -> None:
    """Random requests to every operation, after the document: each answer is one that the document describes."""
    seen = 0
    for operation in operations(server):

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            deadline=None,
        )
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS, timeout=60)

        check()
        seen += 1
    assert seen > 15


def test_documentation_pages_need_no_other_host(server: Server) -> None:
    for page in ("/docs", "/redoc"):
        html = httpx.get(server.url + page).text
        for line in html.splitlines():
            if "src=" in line or "href=" in line:
                assert "http" not in line.replace("http-equiv", ""), line


@pytest.mark.parametrize("file", ["swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js"])
def test_documentation_files_are_served_here(server: Server, file: str) -> None:
    assert httpx.get(f"{server.url}/static/docs/{file}").status_code == 200
