"""Certificates between proxies: a day's life in seconds, rotation of the root, revocation, and certificates that are refused."""
import datetime
import socket
import ssl
import subprocess
import time

import h2.config
import h2.connection
import h2.events
import pytest
from conftest import wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mesh import DOMAIN
from mesh_fixtures import local
from spiffe import WorkloadApiClient


@pytest.mark.timeout(400)
def test_a_hundred_rotations_under_load(local):
    mesh = local(callers=("web", "guest"), servers=("app", "app2"), ttl="6s")
    loads = [mesh.load(name, "app.shop") for name in ("web", "guest")]
    proxies = list(mesh.proxies)

    def renewals():
        return sum(mesh.metric(name, "selvedge_identity_renewals_total") for name in proxies)

    goal = renewals() + 100
    wait_for(lambda: time.sleep(0.5) or renewals() >= goal, "a hundred rotations", 300)
    for load in loads:
        load.more(20)
        load.none_failed()
    no_handshake_failed(mesh)


def no_handshake_failed(mesh):
    """Of no proxy that runs, on either side; a request may hide that one did, since it is sent again."""
    for name in mesh.proxies:
        tunnels = lambda outcome: mesh.metric(name, "selvedge_mesh_tunnel_connections_total", f'outcome="{outcome}"')
        counted = tunnels("handshake_failure"), mesh.metric(name, "selvedge_mesh_refused_total", 'reason="handshake"')
        assert counted == (0, 0), f"{name}: {counted} handshakes failed; {mesh.log(name)[-3000:]}"
    assert sum(mesh.metric(name, "selvedge_mesh_tunnel_connections_total", 'outcome="opened"') for name in mesh.proxies) >= 1


def test_the_root_rotates_under_load(local):
    mesh = local(servers=("app", "app2"), ttl="6s")
    load = mesh.load("web", "app.shop", threads=4)
    load.more(50)
    roots = lambda: {(words := line.split())[1]: words[-1] for line in mesh.ask("ca", "show").stdout.splitlines() if line.startswith("root")}
    renewed = lambda: [mesh.metric(name, "selvedge_identity_renewals_total") for name in mesh.proxies]
    (before,) = roots()
    done = mesh.ask("ca", "rotate", "root")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: len(roots()) == 2, "the next root being in the bundle")
    # It signs when everybody has had time to learn of it; the old one stays until nothing under it can be valid.
    wait_for(lambda: time.sleep(0.2) or {r for r, phase in roots().items() if phase == "active"} - {before}, "the next root signing")
    then = renewed()
    wait_for(lambda: time.sleep(0.2) or all(now >= t + 2 for now, t in zip(renewed(), then)), "certificates under the next root")
    load.more(200)
    load.none_failed()
    no_handshake_failed(mesh)


def test_alarms_while_certificates_cannot_be_renewed(local):
    mesh = local(ttl="60s")
    name = "web"
    alarm = lambda: mesh.metric(name, "selvedge_identity_alarm", f'identity="spiffe://{DOMAIN}/ns/shop/sa/{name}"')
    assert "selvedge_identity_alarm{" in mesh.admin_get(name, "/metrics") and alarm() == 0
    mesh.kill(mesh.control)
    half, soon = "half of the certificate's life is over and it could not be renewed", "the certificate ends soon and could not be renewed"
    assert half not in mesh.log(name) and soon not in mesh.log(name)
    # Each level lasts for twelve seconds at least.
    wait_for(lambda: alarm() == 1, "the alarm at half of the life", 150)
    wait_for(lambda: half in mesh.log(name), "the line at half of the life")
    wait_for(lambda: alarm() == 2, "the alarm at four fifths", 150)
    wait_for(lambda: soon in mesh.log(name), "the line at four fifths")
    mesh.start_control()
    wait_for(lambda: alarm() == 0, "the alarm being over", 150)
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "requests")


def test_revocation_ends_what_lives(local):
    mesh = local(callers=("web", "guest"))
    lines = {name: mesh.upgraded(name, "app.shop") for name in ("web", "guest")}
    done = mesh.ask("ca", "revoke", "--identity", "shop/web")
    assert done.returncode == 0, done.stderr
    try:
        assert lines["web"].recv(100) == b""
    except ConnectionError:
        pass
    lines["guest"].sendall(b"still here\n")
    assert lines["guest"].recv(100) == b"still here\n"
    wait_for(lambda: mesh.code("web", "http://app.shop/") != "200", "new connections being refused")
    assert mesh.code("guest", "http://app.shop/") == "200"


# Certificates made by the test, under an intermediate that the control plane was given as well.


class Authority:
    def __init__(self, name, parent=None):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.parent = parent or self
        self.certificate = self.parent.sign(self.name, self.key.public_key(), 30, x509.BasicConstraints(True, None), authority=True)

    def sign(self, name, key, days, constraints, uris=(), authority=False, begin=1):
        now = datetime.datetime.now(datetime.timezone.utc)
        usage = dict.fromkeys(["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
                               "decipher_only"], False)
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=begin)).not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(constraints, True).add_extension(x509.KeyUsage(**usage), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False))
        if uris:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), False)
        return builder.sign(self.key, hashes.SHA256())

    def leaf(self, folder, name, *uris, days=1, begin=1, constraints=x509.BasicConstraints(False, None)):
        """Files of a certificate chain and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = self.sign(subject, key.public_key(), days, constraints, uris, begin=begin)
        return write(folder, name, [leaf, self.certificate], key)


def pem(certificates):
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def write(folder, name, chain, key):
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files = folder / f"{name}.pem", folder / f"{name}.key"
    for file, content in zip(files, (pem(chain), key.private_bytes(serialization.Encoding.PEM, *form))):
        put(file, content)
    return files


def put(file, content):
    """Writes a file that may be read at any time: whole, or not yet."""
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content)
    new.rename(file)


def hbone(address, files, authority):
    """An HBONE client of its own: what a GET through the tunnel is answered with. Raises when mutual TLS is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if files:
        context.load_cert_chain(*files)
    with socket.create_connection((address, 15008), timeout=60) as raw, context.wrap_socket(raw) as s:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False))
        connection.initiate_connection()
        connection.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
        s.sendall(connection.data_to_send())
        status, body = None, b""
        while b"}" not in body:
            data = s.recv(65536)
            if not data:
                raise ConnectionError("closed")
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[":status"]
                    if status != "200":
                        return status, b""
                    connection.send_data(1, b"GET /tunnel HTTP/1.1\r\nhost: app.shop\r\n\r\n")
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    raise ConnectionError(repr(event))
            s.sendall(connection.data_to_send())
        return status, body


def test_whoever_is_not_of_the_mesh_is_refused_at_the_handshake(local, tmp_path):
    root = Authority("root")
    ours = Authority("intermediate", root)
    chain, key = write(tmp_path, "intermediate", [ours.certificate, root.certificate], ours.key)
    mesh = local("--ca-intermediate", chain, "--ca-intermediate-key", key)
    address = mesh.net.address("app")
    target = f"{address}:8080"
    web = f"spiffe://{DOMAIN}/ns/shop/sa/web"
    foreign = Authority("foreign")
    good = ours.leaf(tmp_path, "good", web)
    status, body = hbone(address, good, target)
    assert status == "200" and f"URI={web}".encode() in body, body
    # Within the tunnel only ports of this workload are reached.
    assert hbone(address, good, "127.0.0.1:22")[0] in ("400", "403", "404")
    refused = {
        "none": None,
        "another root": foreign.leaf(tmp_path, "foreign", web),
        "another trust domain": ours.leaf(tmp_path, "abroad", "spiffe://elsewhere.example/ns/shop/sa/web"),
        "expired": ours.leaf(tmp_path, "expired", web, days=-0.5),
        "not yet valid": ours.leaf(tmp_path, "early", web, begin=-0.5),
        "no SPIFFE ID": ours.leaf(tmp_path, "nameless"),
        "two URIs": ours.leaf(tmp_path, "double", web, f"spiffe://{DOMAIN}/ns/shop/sa/admin"),
        "not a SPIFFE ID": ours.leaf(tmp_path, "http", "https://mesh.example/ns/shop/sa/web"),
        "a CA": ours.leaf(tmp_path, "authority", web, constraints=x509.BasicConstraints(True, 0)),
    }
    went_through = []
    for why, files in refused.items():
        before = mesh.metric("app", "selvedge_mesh_refused_total", 'reason="handshake"')
        try:
            went_through.append((why, hbone(address, files, target)))
        except (ssl.SSLError, OSError):
            wait_for(lambda: mesh.metric("app", "selvedge_mesh_refused_total", 'reason="handshake"') > before, f"{why} being counted")
    assert not went_through, went_through
    assert hbone(address, good, target)[0] == "200"


def test_curl_and_openssl_with_an_svid_from_our_ca(local, tmp_path):
    mesh = local()
    mesh.kill(mesh.proxies["web"])
    api = tmp_path / "api.sock"
    mesh.proxy("web", "--workload-api", api)

    def fetch():
        with WorkloadApiClient(f"unix:{api}") as client:
            svid = client.fetch_x509_svid()
            return svid, client.fetch_x509_bundles().get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)

    svid, bundle = wait_for(fetch, "the SVID")
    cert, key = write(tmp_path, "svid", svid.cert_chain, svid.private_key)
    (tmp_path / "roots.pem").write_bytes(pem(bundle.x509_authorities))
    address = mesh.net.address("app")
    status, body = hbone(address, (cert, key), f"{address}:8080")
    assert status == "200" and str(svid.spiffe_id).encode() in body
    curl = ["curl", "-sS", "-v", "--http2", "--tlsv1.3", "-k", "-o", "/dev/null", "-w", "%{http_code}", f"https://{address}:15008/"]
    done = subprocess.run([*curl, "--cert", cert, "--key", key], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout[0] == "4", (done.stdout, done.stderr)
    assert "TLS_AES" in done.stderr or "TLSv1.3" in done.stderr
    done = subprocess.run(curl, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0, "without a certificate nothing is answered"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{address}:15008", "-cert", cert, "-key", key, "-CAfile", tmp_path / "roots.pem",
         "-cert_chain", cert, "-verify_return_error", "-alpn", "h2", "-tls1_3"],
        input="", capture_output=True, text=True, timeout=100)
    assert "Verify return code: 0 (ok)" in done.stdout and "ALPN protocol: h2" in done.stdout, done.stdout + done.stderr
    done = subprocess.run(["openssl", "s_client", "-connect", f"{address}:15008", "-tls1_2"], input="", capture_output=True, text=True, timeout=100)
    assert "alert" in done.stderr, "TLS 1.2 is refused"
