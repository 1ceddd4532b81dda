"""Unmodified programs in network namespaces, captured: what they speak passes as they speak it, and nobody on the way reads it."""
import json
import pathlib
import shutil
import socket
import sys
import time

import pytest
from conftest import wait_for
from mesh import PEER, Wire, inside, mesh_resource, service
from mesh_fixtures import extra, resources, shop

SECRET = "the-quick-brown-fox-on-the-wire"


def sealed(mesh, work):
    """What `work` returns; fails when the secret is seen on the wire, or when nothing is."""
    wire = Wire(mesh.net)
    result = work()
    seen = wire.stop()
    assert len(seen) > 1000, "nothing was on the wire"
    assert SECRET.encode() not in seen, "clear text on the wire"
    return result


def test_curl_and_python_http_server(shop):
    folder = shop.folder / "files"
    folder.mkdir(exist_ok=True)
    (folder / "page.txt").write_text(SECRET * 100)
    shop.spawn("files", "apps", sys.executable, "-m", "http.server", 8000, "--directory", folder)
    wait_for(lambda: shop.code("web", "http://10.96.0.4/page.txt") == "200", "http.server answering")
    got = sealed(shop, lambda: shop.curl("web", "http://10.96.0.4/page.txt", check=True).stdout)
    assert got == SECRET * 100
    # The same bytes are seen when nobody hides them: the check can fail.
    wire = Wire(shop.net)
    shop.run("outside", "curl", "-sS", "http://%s:8000/page.txt" % shop.net.address("apps"))
    assert SECRET.encode() in wire.stop()


def test_the_server_learns_who_calls_and_nobody_else_can_say_so(shop):
    fake = "By=spiffe://mesh.example/ns/shop/sa/apps;URI=spiffe://mesh.example/ns/shop/sa/admin"
    seen = shop.says("web", "-H", f"x-forwarded-client-cert: {fake}", "http://10.96.0.2/who")
    assert "URI=spiffe://mesh.example/ns/shop/sa/web" in seen["headers"]["x-forwarded-client-cert"]
    assert "admin" not in seen["headers"]["x-forwarded-client-cert"]
    clear = shop.run("outside", "curl", "-sS", "-H", f"x-forwarded-client-cert: {fake}",
                     f"http://{shop.net.address('apps')}:8080/who").stdout
    assert "x-forwarded-client-cert" not in json.loads(clear)["headers"]


def test_redis(shop):
    shop.spawn("redis", "apps", "redis-server", "--port", 6379, "--bind", "0.0.0.0", "--save", "", "--protected-mode", "no")
    cli = lambda *args: shop.run("web", "redis-cli", "-h", "10.96.0.5", *args, check=False).stdout.strip()
    wait_for(lambda: cli("PING") == "PONG", "redis answering")

    def work():
        assert cli("SET", "key", SECRET) == "OK"
        return cli("GET", "key")

    assert sealed(shop, work) == SECRET


def postgres_programs():
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or not shutil.which("psql"):
        pytest.skip("PostgreSQL is not installed")
    return found[-1].parent


def test_postgresql(shop, tmp_path):
    programs = postgres_programs()
    folder = pathlib.Path(f"/tmp/sv-e2e-pg-{shop.folder.parent.name}-{time.monotonic_ns()}")
    folder.mkdir()
    try:
        shutil.chown(folder, "nobody")
        as_nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        shop.run(None, *as_nobody, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "shop", "-N", timeout=200)
        (folder / "data/pg_hba.conf").write_text("host all all 0.0.0.0/0 trust\n")
        server = shop.spawn("postgres", "apps", *as_nobody, programs / "postgres", "-D", folder / "data", "-h", "0.0.0.0",
                            "-p", 5432, "-k", folder, "-F")
        psql = lambda text: shop.run(
            "web", "psql", "-h", "10.96.0.8", "-U", "shop", "-d", "postgres", "-Atc", text, check=False).stdout.strip()
        wait_for(lambda: psql("select 1") == "1", "PostgreSQL answering")
        assert sealed(shop, lambda: psql(f"select repeat('{SECRET}', 50)")) == SECRET * 50
        shop.kill(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_grpc_unary_and_stream(shop):
    done = shop.run("web", sys.executable, PEER, "call-grpc", "10.96.0.7:80")
    assert json.loads(done.stdout) == ["hello mesh", *[f"part {index}" for index in range(5)]]


def test_a_server_that_speaks_first_undeclared(shop):
    begin = time.monotonic()

    def talk():
        with socket.create_connection(("10.96.0.6", 25), timeout=60) as s:
            greeting = s.recv(100)
            took = time.monotonic() - begin
            s.sendall(b"EHLO web\r\n")
            heard = s.recv(100)
            return greeting, heard, took

    greeting, heard, took = inside(shop.net.space("web"), talk)
    assert greeting == b"220 mail.shop ESMTP ready\r\n" and heard == b"250 heard EHLO web\r\n"
    assert took < 20, f"the greeting came after {took:.2f} s"


def test_mysql_undeclared(shop, extra):
    """The server greets first; what the client says then, and all that follows, is taken as it is."""
    shop.peer("apps", "mysql", "0.0.0.0", 3306, label="mysql")
    extra(service("ledger", 3306, 3306, {"name": "apps"}, "10.96.0.9"))
    shop.settle()
    packet = lambda number, payload: len(payload).to_bytes(3, "little") + bytes([number]) + payload
    # HandshakeResponse41: capabilities, longest packet, character set, and a user without password.
    login = bytes.fromhex("0582080000000001ff") + bytes(23) + b"shop\0\0mysql_native_password\0"

    def talk():
        begin = time.monotonic()
        with socket.create_connection(("10.96.0.9", 3306), timeout=60) as s, s.makefile("rb") as stream:
            hear = lambda: (head := stream.read(4)) and (head[3], stream.read(int.from_bytes(head[:3], "little")))
            greeting, took = hear(), time.monotonic() - begin
            s.sendall(packet(1, login))
            said = [hear()]
            s.sendall(packet(0, b"\x03select '" + SECRET.encode() + b"'"))
            said.append(hear())
            s.sendall(packet(0, b"\x01"))
            return greeting, took, said, stream.read()

    greeting, took, said, rest = sealed(shop, lambda: inside(shop.net.space("web"), talk))
    assert greeting[0] == 0 and greeting[1].startswith(b"\x0a8.0.36\0") and greeting[1].endswith(b"mysql_native_password\0")
    ok = bytes([0, 0, 0, 2, 0, 0, 0])
    assert said == [(2, ok), (1, ok)] and rest == b""
    assert took < 20, f"the greeting came after {took:.2f} s"


def test_ipv6(shop):
    found = shop.says("web", "http://[fd96::2]/six")
    assert found["name"] == "v1" and found["path"] == "/six"
    assert "sa/web" in found["headers"]["x-forwarded-client-cert"]
    address = "fd99::" + shop.net.address("apps").rsplit(".", 1)[1]
    direct = shop.says("web", f"http://[{address}]:8080/direct")
    assert "sa/web" in direct["headers"]["x-forwarded-client-cert"]


def test_names_of_the_mesh(shop):
    for name in ["app-v1.shop", "app-v1", "app-v1.shop.svc.cluster.local"]:
        seen = shop.says("web", f"http://{name}/named")
        assert (seen["name"], seen["path"]) == ("v1", "/named"), name
    cli = shop.run("web", "getent", "ahostsv4", "app-v2.shop")
    assert cli.stdout.split()[0] == "10.96.0.3"


def test_mutual_tls_without_a_tunnel(shop):
    count = lambda: shop.metric("apps2", "selvedge_mesh_connections_total", 'security="mutual_tls"')
    before = count()
    shop.write("shop", resources(shop.net, tunnel="MutualTLS"))
    try:
        wait_for(lambda: shop.says("web", "http://10.96.0.3/")["name"] == "v2" and count() > before, "the change")
        seen = sealed(shop, lambda: shop.says("web", "-d", SECRET * 30, f"http://10.96.0.3/{SECRET}"))
        assert seen["path"] == f"/{SECRET}" and "sa/web" in seen["headers"]["x-forwarded-client-cert"]
    finally:
        shop.write("shop", resources(shop.net))
        shop.settle()


def test_what_nobody_knows_is_reached_unless_only_the_registry_is(shop):
    url = f"http://{shop.net.address('outside')}:8080/out"
    shop.peer("outside", "http", "0.0.0.0", 8080, "outside")
    wait_for(lambda: shop.code("web", url) == "200", "what is outside answering")
    assert "x-forwarded-client-cert" not in shop.says("web", url)["headers"]
    try:
        shop.write("mesh", mesh_resource(egress="RegistryOnly"))
        refused = lambda: shop.metric("web", "selvedge_mesh_refused_total", 'reason="unknown_destination"')
        wait_for(lambda: shop.code("web", url) != "200" and refused() >= 1, "only the registry being reached")
        assert shop.code("web", "http://10.96.0.2/") == "200"
    finally:
        shop.write("mesh", mesh_resource())
        shop.settle()
