"""The OpenAPI document against the running server: no 500, and nothing that the document doesn't say."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.support.server import Server


@pytest.fixture(scope="module")
def api_schema(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_no_request_makes_a_500_or_breaks_the_document(case: schemathesis.Case) -> None:
    case.call_and_validate(
        excluded_checks=[
            # A load answers 200 again for the same content, and ids that are unknown are 404: both documented.
            schemathesis.checks.positive_data_acceptance,
            schemathesis.checks.unsupported_method,
        ],
        timeout=60,
    )


def test_documentation_pages_need_no_other_host(server: Server) -> None:
    for page in ("/docs", "/redoc"):
        html = httpx.get(server.url + page).text
        for line in html.splitlines():
            if "src=" in line or "href=" in line:
                assert "http" not in line.replace("http-equiv", ""), line
