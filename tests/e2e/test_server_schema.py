"""schemathesis draws requests from the server's own OpenAPI document: none of them breaks it."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.serving import served, write_bundle

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"


def test_no_request_drawn_from_the_document_ends_in_a_server_error(tmp_path):
    # Hardly any room for an answer, so that the many that are valid end soon.
    with served(write_bundle(tmp_path / "bundle"), "--context-tokens", "64") as server:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "schemathesis"),
                "run",
                f"{server.url}/openapi.json",
                *("--checks", CHECKS),
                *("--max-examples", "20", "--seed", "1", "--workers", "4"),
                *("--request-timeout", "180", "--no-color"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=2400,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert server.health()[0] == 200
