"""What is in progress when a policy of the mesh changes."""
import http.client
import socket

import pytest
from conftest import wait_for
from mesh import mesh_resource, resource, route
from mesh_fixtures import extra, local, shop


def ends(connection):
    """Whether a TCP connection is closed or reset, without having said anything."""
    connection.settimeout(60)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def in_space(mesh, name, work):
    from mesh import inside
    return inside(mesh.net.space(name), work)


@pytest.fixture
def permissive(shop):
    """Back to what others expect, after the test."""
    yield shop
    shop.write("mesh", mesh_resource())
    shop.settle()
    wait_for(lambda: shop.run("outside", "curl", "-sS", "-m", "60", f"http://{shop.net.address('apps')}:8080/", check=False).returncode == 0,
             "clear text being served again")


def test_strict_ends_connections_in_clear_text(permissive):
    shop = permissive
    to = shop.net.address("apps")

    def open_both():
        kept = http.client.HTTPConnection(to, 8080, timeout=60)
        kept.request("GET", "/")
        answer = kept.getresponse()
        answer.read()
        mail = socket.create_connection((to, 2525), timeout=60)
        assert mail.recv(4) == b"220 "
        while not mail.recv(1) == b"\n":
            pass
        return answer.status, kept, mail

    status, kept, mail = in_space(shop, "outside", open_both)
    assert status == 200
    # The same through the mesh goes on.
    member = in_space(shop, "web", lambda: socket.create_connection(("10.96.0.6", 25), timeout=60))
    assert member.recv(4) == b"220 "
    shop.write("mesh", mesh_resource("Strict"))
    assert ends(mail), "bytes in clear text"
    assert ends(kept.sock), "a connection that waits for its next request"
    while member.recv(1) != b"\n":
        pass
    member.sendall(b"QUIT\r\n")
    assert member.recv(3), "who has proven an identity stays"


def test_a_silent_client_is_refused_soon_where_mutual_tls_is_demanded(permissive):
    shop = permissive
    shop.write("mesh", mesh_resource("Strict"))
    to = (shop.net.address("apps"), 2525)

    def refused():
        connection = socket.create_connection(to, timeout=60)
        connection.settimeout(4)
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    wait_for(lambda: in_space(shop, "outside", refused), "clear text being refused before the client has spoken")


def test_registry_only_ends_connections_to_the_unknown(permissive):
    shop = permissive
    server = in_space(shop, "outside", lambda: socket.create_server((shop.net.address("outside"), 7000)))
    client = in_space(shop, "web", lambda: socket.create_connection((shop.net.address("outside"), 7000), timeout=60))
    client.sendall(b"x")
    taken, _ = server.accept()
    assert taken.recv(1) == b"x"
    shop.write("mesh", mesh_resource(egress="RegistryOnly"))
    assert ends(client)
    server.close()
