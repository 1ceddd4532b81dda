"""h2spec against a real route whose backend reads the whole request, over h2c and TLS, plain and strict."""
import os
import re
import shutil
import subprocess

import pytest
from backend import Backend, backend_service, gateway_resource
from conftest import Gateway, free_port, route
from test_streams import certificate, secret

H2SPEC = os.environ.get("H2SPEC") or shutil.which("h2spec")
pytestmark = pytest.mark.skipif(not H2SPEC, reason="h2spec is not installed (set H2SPEC to its path)")


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    keys = tmp_path_factory.mktemp("h2spec-keys")
    stem = certificate(keys, "self", names=("localhost",))
    p = {n: free_port() for n in ("http", "https")}
    text = gateway_resource([{"name": "http", "port": p["http"], "protocol": "HTTP"},
                             {"name": "https", "port": p["https"], "protocol": "HTTPS", "tls": {"mode": "Terminate", "certificateRefs": [{"name": "self"}]}}])
    text += secret("self", stem) + backend_service("b", [Backend("b")])
    for name in p:
        text += route(name, [{"backendRefs": [{"name": "b", "port": 80}]}], name)
    folder = tmp_path_factory.mktemp("h2spec")
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    running.p = p
    yield running
    assert running.stop() == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strict", [[], ["--strict"]], ids=["plain", "strict"])
@pytest.mark.parametrize("listener, tls", [("http", []), ("https", ["-t", "-k"])])
def test_h2spec(edge, listener, tls, strict):
    done = subprocess.run([H2SPEC, "-h", "127.0.0.1", "-p", str(edge.p[listener]), "-o", "10", *tls, *strict], capture_output=True, timeout=280)
    out = done.stdout.decode()
    found = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", out)
    assert found and int(found[4]) == 0 and int(found[2]) > 100, out[-3000:]
