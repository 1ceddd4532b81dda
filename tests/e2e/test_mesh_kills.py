"""kill -9 of the control plane, and of either proxy, under load between captured workloads: nothing passes by a dead proxy, no
answer is wrong, and all goes on when it is back."""
import pytest
from conftest import wait_for
from mesh import Wire, service, workload
from mesh_fixtures import capture, spaces

URL = "http://10.96.0.1"


@pytest.fixture
def pair(tmp_path):
    """`web` calls `app`, under load, in a mesh that would take clear text; every frame is read. `outside` is not of the mesh."""
    with spaces(tmp_path, "web", "app", "outside") as mesh:
        net = mesh.net
        mesh.write("shop", workload("web", net.address("web"), []) + workload("app", net.address("app"), [{"name": "http", "port": 8080}])
                   + service("app", 80, 8080, {"app": "app"}, "10.96.0.1", "http"))
        mesh.peer("app", "http", "0.0.0.0", 8080, "app")
        for name in ("web", "app"):
            capture(mesh, name)
            mesh.proxy(name)
        wait_for(lambda: mesh.code("web", f"{URL}/load") == "200", "the first request")
        mesh.in_sync("web", "app")
        mesh.wire = Wire(net)
        mesh.busy = mesh.load("web", "app.shop", threads=4, address="10.96.0.1")
        mesh.busy.more(50)
        yield mesh


def clear(mesh, name):
    """Straight to the application's address."""
    return mesh.code(name, f"http://{mesh.net.address('app')}:8080/load")


def all_well(mesh):
    """From now on no request fails, and none of all of them was on the wire as it is."""
    failed = len(mesh.busy.failed)
    mesh.busy.more(200)
    assert all(mesh.code("web", f"{URL}/load") == "200" for _ in range(5)), "new connections"
    assert len(mesh.busy.stop().failed) == failed, mesh.busy.failed[failed:]
    seen = mesh.wire.stop()
    assert len(seen) > 10_000 and b"GET /load" not in seen, "clear text on the wire"


def test_control_killed_costs_no_request(pair):
    pair.kill(pair.control)
    pair.busy.more(200)
    # New connections too, and what is not known yet goes where it was going.
    assert all(pair.code("web", f"{URL}/load") == "200" for _ in range(5))
    pair.start_control()
    pair.in_sync("web", "app")
    pair.busy.more(50)
    assert not pair.busy.failed, pair.busy.failed
    all_well(pair)


def test_the_servers_proxy_killed_lets_nothing_pass(pair):
    pair.kill(pair.proxies["app"])
    wait_for(lambda: len(pair.busy.failed) > 8, "requests failing")
    done = pair.busy.done
    # Permissive it is, but without a proxy nobody takes clear text.
    assert clear(pair, "outside") == "000"
    assert clear(pair, "web") in ("502", "503", "504") and pair.code("web", f"{URL}/load") in ("502", "503", "504")
    assert pair.busy.done == done, "somebody has answered"
    pair.proxy("app")
    pair.busy.more(50)
    # The caller's proxy has told what is wrong; an answer of which a part had come is broken off, so that nobody takes it for whole.
    kinds = {str(failure[1]).split("(")[0] for failure in pair.busy.failed}
    assert kinds <= {"502", "503", "504", "IncompleteRead"}, pair.busy.failed
    all_well(pair)


def test_the_callers_proxy_killed_lets_nothing_pass(pair):
    pair.kill(pair.proxies["web"])
    wait_for(lambda: len(pair.busy.failed) > 8, "requests failing")
    done = pair.busy.done
    assert pair.code("web", f"{URL}/load") == "000" and clear(pair, "web") == "000", "captured, and nobody there"
    assert pair.busy.done == done
    pair.proxy("web")
    pair.busy.more(50)
    kinds = {str(failure[1]).split("(")[0] for failure in pair.busy.failed}
    assert kinds <= {"ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError", "IncompleteRead"}, pair.busy.failed
    all_well(pair)


def test_all_killed_and_back_without_control(pair):
    for name, kind in [("web", '"Service"'), ("app", '"Workload"')]:
        file = pair.folder / f"{name}.state/last-good.json"
        wait_for(lambda: kind in file.read_text(), f"what {name} uses being saved")
    pair.kill(pair.control)
    for name in ("app", "web"):
        pair.kill(pair.proxies[name])
    wait_for(lambda: len(pair.busy.failed) > 8, "requests failing")
    for name in ("web", "app"):
        pair.proxy(name, token=False)
    pair.busy.more(50)
    pair.start_control()
    pair.in_sync("web", "app")
    all_well(pair)
