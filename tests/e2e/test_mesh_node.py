"""One proxy for all workloads of a machine: it captures in the network namespace of each, and when it dies nothing passes by it."""
import signal
import sys

import pytest
from conftest import BIN, wait_for
from mesh import DOMAIN, Wire, mesh_resource, service, workload
from mesh_fixtures import spaces

SECRET = "nobody-on-the-way-reads-this"
ACCOUNTS = ["selvedge-system/node", "shop/web", "shop/app"]
SIX = {"web": "fd96::1", "app": "fd96::2"}
FOUR = {"web": "10.96.0.1", "app": "10.96.0.2"}
# Who calls whom.
WAYS = [("web", "app"), ("app", "web")]


def start(mesh):
    spaces = [word for name in SIX for word in ("--workload", f"shop/{name}@{mesh.net.space(name)}")]
    identities = [word for account in ACCOUNTS for word in ("--identity", account)]
    return mesh.spawn(
        "node", None, BIN, "proxy", "--control", f"https://{mesh.net.control}:{mesh.port}", "--role", "node", "--id", "node",
        *identities, "--trust-domain", DOMAIN, "--join-token-file", mesh.folder / "tokens", "--state", mesh.folder / "node.state",
        "--workers", 2, "--capture", "--apply-capture", "--dns", "--dns-upstream", "10.99.0.1:53", *spaces)


@pytest.fixture
def machine(tmp_path):
    """`web` and `app`, which call and serve, behind the node proxy; `outside` is not of the mesh."""
    with spaces(tmp_path, "web", "app", "outside") as mesh:
        net = mesh.net
        address = lambda name: [net.address(name), net.address(name).replace("10.99.0.", "fd99::")]
        ports = [{"name": "http", "port": 8080}, {"name": "files", "port": 8000, "appProtocol": "http"}]
        mesh.write("mesh", mesh_resource("Strict"))
        mesh.write("shop", "".join(workload(name, address(name), ports) for name in SIX)
                   + "".join(service(name, 80, 8080, {"app": name}, FOUR[name], "http", [FOUR[name], SIX[name]]) for name in SIX)
                   + service("files", 80, 8000, {"app": "app"}, "10.96.0.3", "http"))
        (tmp_path / "tokens").write_text("".join(mesh.token(account) for account in ACCOUNTS))
        for name in SIX:
            mesh.peer(name, "http", "::", 8080, name)
        mesh.node = start(mesh)
        mesh.in_sync("node")
        for name, other in WAYS:
            wait_for(lambda: mesh.code(name, f"http://{other}.shop/") == "200", f"the first call of {name}; {tmp_path}")
        yield mesh


def each_way(mesh):
    """Every call is taken, by name and address, and proves who makes it."""
    for name, other in WAYS:
        six = mesh.net.address(other).replace("10.99.0.", "fd99::")
        for url in [f"{other}.shop", other, f"{other}.shop.svc.cluster.local", FOUR[other], f"[{SIX[other]}]", f"[{six}]:8080"]:
            seen = mesh.says(name, "-H", f"x-secret: {SECRET}", f"http://{url}/{SECRET}")
            proof = seen["headers"]["x-forwarded-client-cert"]
            assert seen["name"] == other and f"URI=spiffe://{DOMAIN}/ns/shop/sa/{name}" in proof, (url, seen)
        seen = mesh.says(name, "-6", f"http://{other}.shop/")
        assert seen["name"] == other, "by the IPv6 address of its name"


def rules(mesh, name):
    """Whether the rules are there, and as they should be."""
    return mesh.run(None, BIN, "capture", "show", "--netns", mesh.net.space(name), "--dns", check=False).returncode == 0


def test_unmodified_programs_each_way(machine):
    mesh = machine
    folder = mesh.folder / "files"
    folder.mkdir()
    (folder / "page.txt").write_text(SECRET * 100)
    mesh.spawn("files", "app", sys.executable, "-m", "http.server", 8000, "--bind", "::", "--directory", folder)
    wait_for(lambda: mesh.code("web", "http://files.shop/page.txt") == "200", "http.server answering")
    wire = Wire(mesh.net)
    each_way(mesh)
    assert mesh.curl("web", "http://files.shop/page.txt", check=True).stdout == SECRET * 100
    seen = wire.stop()
    assert len(seen) > 1000 and SECRET.encode() not in seen
    assert all(rules(mesh, name) for name in SIX)
    # Who proves nothing is refused.
    for name in SIX:
        assert mesh.run("outside", "curl", "-sS", f"http://{mesh.net.address(name)}:8080/", check=False).returncode != 0
    # At its end it takes the rules with it.
    assert mesh.kill(mesh.node, signal.SIGTERM) == 0
    assert not any(rules(mesh, name) for name in SIX)


def test_killed_it_lets_nothing_pass_and_comes_back_without_control(machine):
    mesh = machine
    each_way(mesh)
    saved = mesh.folder / "node.state/last-good.json"
    wait_for(lambda: all(text in saved.read_text() for text in [*SIX.values(), "fd99::"]), "what is used being saved")
    wire = Wire(mesh.net)
    load = mesh.load("web", "app.shop", threads=1, address=FOUR["app"])
    load.more(20)
    mesh.kill(mesh.control)
    load.more(20)
    assert not load.failed, load.failed
    mesh.kill(mesh.node)
    wait_for(lambda: len(load.failed) > 1, "a call failing")
    # What follows is of one thread, which has failed: no answer is on its way to it.
    done = load.done
    assert all(rules(mesh, name) for name in SIX), "the rules stay"
    for name, other in [*WAYS, ("outside", "app"), ("outside", "web")]:
        four = mesh.net.address(other)
        for host in [four, f"[{four.replace('10.99.0.', 'fd99::')}]"]:
            assert mesh.code(name, f"http://{host}:8080/load") == "000", f"{name} passes by the dead proxy to {host}"
    assert all(mesh.code(name, f"http://{other}.shop/load") == "000" for name, other in WAYS)
    assert load.done == done
    start_again(mesh, load)
    each_way(mesh)
    failed = len(load.failed)
    load.more(50)
    mesh.start_control()
    mesh.in_sync("node")
    load.more(50)
    assert len(load.stop().failed) == failed, load.failed[failed:]
    seen = wire.stop()
    # An attempt from outside is on the wire, but not one byte of it beyond the handshake, nor of those that were captured.
    assert len(seen) > 1000 and b"GET /load" not in seen and SECRET.encode() not in seen


def start_again(mesh, load):
    mesh.node = start(mesh)
    load.more(20)
    for name, other in WAYS:
        wait_for(lambda: mesh.code(name, f"http://{other}.shop/") == "200", f"{name} calling again; {mesh.folder}")
