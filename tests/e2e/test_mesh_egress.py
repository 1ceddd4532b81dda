"""What leaves the mesh, and what is not HTTP over IPv4: external services with TLS that the mesh adds, servers that speak first
over IPv6, mutual TLS demanded of one port only, members that are cut off from one another."""
import datetime
import json
import socket
import time

import pytest
from conftest import wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mesh import inside, mesh_resource, resource, service, workload
from mesh_fixtures import extra, resources, shop
from test_mesh_certificates import pem


def named(folder, host):
    """A certificate for a DNS name, self-signed: files of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a root")])
    now = datetime.datetime.now(datetime.timezone.utc)
    root_key = ec.generate_private_key(ec.SECP256R1())

    def sign(subject, public, constraints, names):
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
                   .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
                   .not_valid_after(now + datetime.timedelta(days=1)).add_extension(constraints, True))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        return builder.sign(root_key, hashes.SHA256())

    root = sign(name, root_key.public_key(), x509.BasicConstraints(True, None), [])
    leaf = sign(x509.Name([]), key.public_key(), x509.BasicConstraints(False, None), [host])
    chain, secret = folder / f"{host}.pem", folder / f"{host}.key"
    chain.write_bytes(pem([leaf]))
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return chain, secret, pem([root]).decode()


def external(host, port, target, ca=None):
    entry = {"name": "http", "port": port, "targetPort": target, "appProtocol": "http"}
    text = ""
    if ca:
        entry["tls"] = {"mode": "Originate", "caCertificate": "roots"}
        text = "---\n" + json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "roots", "namespace": "shop"}, "data": {"ca.crt": ca}}) + "\n"
    return resource("ExternalService", host.split(".")[0], {"hosts": [host], "ports": [entry]}) + text


@pytest.fixture
def registry_only(shop):
    shop.write("mesh", mesh_resource(egress="RegistryOnly"))
    shop.settle()
    yield
    shop.write("mesh", mesh_resource())
    shop.settle()


def test_an_external_service_by_name_with_tls_that_the_mesh_adds(shop, extra, registry_only, tmp_path):
    """The application asks for a name in clear text. The name is answered with an address of the mesh; the proxy itself must find
    the real one although queries are captured, and speaks TLS to it."""
    net = shop.net
    chain, key, root = named(tmp_path, "api.example.com")
    known = [f"{name}.example.com={net.address('outside')}" for name in ("api", "other")]
    shop.peer(None, "dns", net.control, 53, *known, label="dns")
    shop.peer("outside", "tls", "0.0.0.0", 8443, chain, key, label="tls")
    extra(external("api.example.com", 80, 8443, root))
    url = "http://api.example.com/from-inside"
    wait_for(lambda: shop.code("web", url) == "200", "the external service answering")
    seen = shop.says("web", url)
    assert seen["name"] == "tls" and seen["path"] == "/from-inside"
    assert "x-forwarded-client-cert" not in seen["headers"], "who calls is for members only"
    looked_up = shop.run("web", "getent", "ahostsv4", "api.example.com").stdout.split()[0]
    assert looked_up != net.address("outside"), "the application gets an address of the mesh"
    # The certificate of another name is not taken, and nothing is sent in clear text instead.
    extra(external("other.example.com", 80, 8443, root), name="other")
    wait_for(lambda: shop.code("web", "http://other.example.com/x") in ("502", "503"), "the wrong name being refused")
    # Nobody has written the same server by address.
    direct = shop.run("web", "curl", "-sSk", "-o", "/dev/null", "--max-time", 5, f"https://{net.address('outside')}:8443/", check=False)
    assert direct.returncode != 0, "only what is registered is reached"


def talk(address):
    begin = time.monotonic()
    with socket.create_connection(address, timeout=60) as s:
        greeting = s.recv(100)
        took = time.monotonic() - begin
        s.sendall(b"EHLO web\r\n")
        return greeting, s.recv(100), took


def test_a_server_that_speaks_first_over_ipv6(shop):
    direct = "fd99::" + shop.net.address("apps").rsplit(".", 1)[1]
    for address in [("fd96::6", 25), (direct, 2525)]:
        greeting, heard, took = inside(shop.net.space("web"), lambda: talk(address))
        assert greeting == b"220 mail.shop ESMTP ready\r\n" and heard == b"250 heard EHLO web\r\n", address
        assert took < 20, f"the greeting came after {took:.2f} s"


def test_mutual_tls_is_demanded_of_one_port(shop):
    net = shop.net
    shop.peer("apps", "http", "::", 8001, "guarded", label="guarded")
    ports = [{"name": "http", "port": 8080}, {"name": "guarded", "port": 8001, "appProtocol": "http", "mtls": {"mode": "Strict"}}]
    others = resources(net).split("---\n")
    kept = [part for part in others if '"name": "apps"' not in part.split('"spec"')[0] or '"kind": "Workload"' not in part]
    text = "".join("---\n" + part for part in kept if part)
    text += workload("apps", [net.address("apps"), net.address("apps").replace("10.99.0.", "fd99::")], ports, app="app")
    text += service("guarded", 80, 8001, {"name": "apps"}, "10.96.0.9", "http")
    shop.write("shop", text)
    try:
        clear = lambda port: shop.run("outside", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", 60,
                                      f"http://{net.address('apps')}:{port}/", check=False).stdout
        wait_for(lambda: clear(8001) == "000", "clear text being refused at that port")
        wait_for(lambda: shop.code("web", "http://10.96.0.9/") == "200", "members being served there")
        assert clear(8080) == "200", "the others are as before"
        # The other way round: strict, but for one port.
        shop.write("mesh", mesh_resource("Strict"))
        shop.write("shop", text.replace('{"mode": "Strict"}', '{"mode": "Permissive"}'))
        wait_for(lambda: clear(8080) == "000" and clear(8001) == "200", "the exception")
    finally:
        shop.write("mesh", mesh_resource())
        shop.write("shop", resources(net))
        shop.settle()
        wait_for(lambda: clear(8080) == "200", "clear text being taken again")


def test_members_that_are_cut_off_from_one_another(shop, extra):
    """One of two servers vanishes without a word, together with its part of the network: the other serves, and both do again."""
    policy = {"targetRefs": [{"kind": "Service", "name": "app"}], "timeouts": {"backendRequest": "2s"},
              "retry": {"attempts": 2, "retryOn": ["connect-failure", "reset", "gateway-error"], "codes": [502, 503, 504]},
              "outlierDetection": {"consecutive5xx": 2, "baseEjectionTime": "2s"}}
    extra(resource("TrafficPolicy", "app", policy))
    names = lambda: {shop.says("web", "http://10.96.0.1/who")["name"] for _ in range(12)}
    wait_for(lambda: names() == {"v1", "v2"}, "both serving")
    shop.net.cable("apps2", "down")
    try:
        load = shop.load("web", "app.shop", address="10.96.0.1")
        load.more(200)
        load.stop()
        assert len(load.failed) <= 2, load.failed
        assert names() == {"v1"}
    finally:
        shop.net.cable("apps2", "up")
    wait_for(lambda: names() == {"v1", "v2"}, "both serving again")


def test_the_proxies_are_cut_off_from_control_and_go_on(shop, extra):
    """The control plane is there, but no packet of it arrives: what is known is served, and what is new arrives afterwards."""
    cut = ["add table inet cut", "add chain inet cut output { type filter hook output priority 0 ; }", "add rule inet cut output tcp sport 15012 drop"]
    for line in cut:
        shop.run(None, "nft", line)
    try:
        load = shop.load("web", "app.shop", address="10.96.0.1")
        load.more(100)
        shop.write("late", service("late", 80, 8080, {"name": "apps"}, "10.96.0.77", "http"))
        load.more(50)
        load.none_failed()
    finally:
        shop.run(None, "nft", "delete table inet cut")
    try:
        wait_for(lambda: shop.code("web", "http://10.96.0.77/") == "200", "what is new arriving")
    finally:
        shop.remove("late")
