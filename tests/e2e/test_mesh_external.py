"""Services outside of the mesh, whose resources come through a control plane."""
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import wait_for
from mesh import resource
from mesh_fixtures import local


class Who(BaseHTTPRequestHandler):
    """Says whose certificate the client has shown."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        subject = (self.connection.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for name, value in part if name == "commonName"]
        body = json.dumps({"client": names, "host": self.headers["host"]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def openssl(folder, *words):
    done = subprocess.run(["openssl", *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def signed(folder, name, alt):
    """A certificate of the authority in `folder`, made when it is first needed."""
    if not (folder / "ca.crt").exists():
        openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key",
                "-out", "ca.crt", "-days", 2, "-subj", "/CN=outside", "-addext", "keyUsage=critical,keyCertSign")
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
            "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{alt}\n")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.crt", "-days", 2, "-extfile", f"{name}.ext")


@pytest.fixture
def pay(tmp_path):
    """An HTTPS server that demands client certificates: its folder of keys, and its port."""
    keys = tmp_path / "keys"
    keys.mkdir()
    signed(keys, "server", "pay.example")
    signed(keys, "client", "client.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.crt", keys / "server.key")
    context.load_verify_locations(keys / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Who)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield keys, server.server_address[1]
    server.shutdown()
    server.server_close()


def external(port):
    tls = {"mode": "Originate", "caCertificate": "outside", "clientCertificate": "shop-client"}
    return resource("ExternalService", "pay", {
        "hosts": ["pay.example"], "resolution": "Static", "endpoints": [{"address": "127.0.0.1"}],
        "ports": [{"name": "http", "port": 80, "targetPort": port, "tls": tls}]})


def config_map(keys):
    text = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "outside", "namespace": "shop"},
            "data": {"ca.crt": (keys / "ca.crt").read_text()}}
    return "---\n" + json.dumps(text) + "\n"


def secret(keys):
    text = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop-client", "namespace": "shop"},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": (keys / "client.crt").read_text(), "tls.key": (keys / "client.key").read_text()}}
    return "---\n" + json.dumps(text) + "\n"


def test_tls_to_what_is_outside_with_certificates_from_the_control_plane(local, pay):
    keys, port = pay
    mesh = local()
    mesh.write("pay", external(port))
    wait_for(lambda: mesh.code("web", "http://pay.example/") == "503", "nothing being trusted without its certificates")
    mesh.write("certificates", config_map(keys) + secret(keys))
    wait_for(lambda: mesh.code("web", "http://pay.example/") == "200", "the certificates reaching the proxy")
    assert mesh.says("web", "http://pay.example/") == {"client": ["client"], "host": "pay.example"}
    # One that signs nobody there is published as a change of the first.
    other = keys / "other"
    other.mkdir()
    signed(other, "server", "pay.example")
    mesh.write("certificates", config_map(other) + secret(keys))
    wait_for(lambda: mesh.code("web", "http://pay.example/") == "503", "another authority being asked for")
