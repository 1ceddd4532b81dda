"""Parts of a mesh that die, hang or come in the wrong order: what goes on, and how it comes together again."""
import signal
import time

import pytest
from conftest import wait_for
from mesh import mesh_resource, resource, service, workload
from mesh_fixtures import capture, local, spaces


def test_control_killed_while_everything_goes_on(local):
    mesh = local()
    mesh.in_sync("web", "app")
    load = mesh.load("web", "app.shop")
    load.more(20)
    mesh.kill(mesh.control)
    load.more(100)
    mesh.start_control()
    mesh.in_sync("web", "app")
    # Changes arrive again.
    mesh.write("deny", mesh_deny())
    wait_for(lambda: any(f[1] == 403 for f in load.failed), "a change arriving")
    load.stop()
    assert {failure[1] for failure in load.failed} == {403}, load.failed[:5]


def mesh_deny():
    return resource("AccessPolicy", "nobody", {"action": "Deny", "rules": [{"to": [{"paths": ["/load"]}]}]})


def test_sidecars_killed_serve_from_what_they_saved_without_control(local):
    mesh = local()
    mesh.in_sync("web", "app")
    for name, kind in [("web", '"Service"'), ("app", '"Workload"')]:
        file = mesh.folder / f"{name}.state/last-good.json"
        wait_for(lambda: kind in file.read_text(), f"what {name} uses being saved")
    mesh.kill(mesh.control)
    for name in ("app", "web"):
        mesh.kill(mesh.proxies[name])
        mesh.proxy(name, token=False)
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "the saved state being served")
    load = mesh.load("web", "app.shop")
    load.more(50)
    mesh.start_control()
    mesh.in_sync("web", "app")
    load.none_failed()


def test_a_registered_workload_that_dies_is_out_everywhere_at_once(local):
    mesh = local(callers=("web", "guest"))
    net = mesh.net
    net.add("extra")
    file = mesh.folder / "extra.workload"
    check = {"type": "TCP", "interval": "100ms", "timeout": "1s", "unhealthyThreshold": 1, "healthyThreshold": 1}
    file.write_text(workload("extra", net.address("extra"), [{"name": "http", "port": 8080}], app="app", healthCheck=check))
    app = mesh.peer("extra", "http", net.address("extra"), 8080, "extra")
    mesh.proxy("extra", "--register", file, workload=False)
    callers = ("web", "guest")
    seen = lambda caller: {mesh.says(caller, "http://app.shop/")["name"] for _ in range(4)}
    for caller in callers:
        wait_for(lambda: "extra" in seen(caller), "the new workload being called")

    def known(name):
        return net.address("extra") in mesh.admin_get(name, "/status") + mesh.admin_get(name, "/clusters")

    wait_for(lambda: all(known(name) for name in callers), "the address being known")
    mesh.kill(app)
    killed = time.monotonic()
    wait_for(lambda: not any(known(name) for name in callers), "the dead application being out")
    # Within a second where the machine has nothing else to do; without a word it would take until leases run out.
    assert time.monotonic() - killed < 8, time.monotonic() - killed
    app = mesh.peer("extra", "http", net.address("extra"), 8080, "extra")
    wait_for(lambda: all(known(name) for name in callers), "the workload being back")
    mesh.kill(mesh.proxies["extra"])
    killed = time.monotonic()
    wait_for(lambda: not any(known(name) for name in callers), "the workload of a dead proxy being out")
    # Within a second where the machine has nothing else to do; without a word it would take until leases run out.
    assert time.monotonic() - killed < 8, time.monotonic() - killed
    assert all(mesh.code("web", "http://app.shop/") == "200" for _ in range(6))


def test_the_proxy_first_and_the_application_first(local):
    mesh = local()
    mesh.kill(mesh.apps["app"])
    wait_for(lambda: mesh.code("web", "http://app.shop/") in ("502", "503"), "an error without the application")
    # The application again, beside the proxy that was first.
    mesh.apps["app"] = mesh.peer("app", "http", mesh.net.address("app"), 8080, "app")
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "the application being found")
    # The proxy again, beside an application that was first.
    mesh.kill(mesh.proxies["app"])
    mesh.proxy("app")
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "the proxy being found")


def test_a_dead_application_beside_a_living_proxy_costs_no_request(local):
    mesh = local(servers=("app", "app2"))
    wait_for(lambda: {mesh.says("web", "http://app.shop/")["name"] for _ in range(4)} == {"app", "app2"}, "both being called")
    mesh.kill(mesh.apps["app2"])
    for body in ([], ["-d", "order=1"]):
        codes = [mesh.code("web", *body, "http://app.shop/order") for _ in range(100)]
        assert set(codes) == {"200"}, (body, [code for code in codes if code != "200"])
    # It counts against the endpoint, which is spared for a while.
    assert mesh.metric("web", "selvedge_upstream_ejections_total") > 0, mesh.admin_get("web", "/metrics")
    seen = mesh.curl("web", "-D", "-", "http://app.shop/").stdout
    assert "x-selvedge-undelivered" not in seen.lower()
    # With nobody left the answer is an error, and what the proxies say to each other stays between them.
    mesh.kill(mesh.apps["app"])
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "503", "nobody being left")
    seen = mesh.curl("web", "-D", "-", "http://app.shop/").stdout
    assert "x-selvedge-undelivered" not in seen.lower()


def test_drain_under_load_loses_nothing(local):
    mesh = local(servers=("app", "app2"))
    load = mesh.load("web", "app.shop", threads=4)
    load.more(100)
    process = mesh.proxies["app2"]
    # Leaves the mesh first, as an orchestrator does it, then ends.
    process.send_signal(signal.SIGTERM)
    load.more(100)
    assert process.wait(40) == 0
    load.more(100)
    mesh.proxy("app2")
    load.more(100)
    load.none_failed()


@pytest.fixture
def pair(tmp_path):
    """Two captured workloads in network namespaces of their own, web and app."""
    with spaces(tmp_path, "web", "app") as mesh:
        net = mesh.net
        mesh.write("shop", workload("web", net.address("web"), []) + workload("app", net.address("app"), [{"name": "http", "port": 8080}])
                   + service("app", 80, 8080, {"app": "app"}, "10.96.0.1", "http"))
        for name in ("web", "app"):
            capture(mesh, name)
        yield mesh


def test_in_any_order_and_through_a_partition(pair):
    mesh = pair
    # The application before its proxy: captured and without a proxy, nothing gets through, and nothing passes in clear text.
    mesh.peer("app", "http", "0.0.0.0", 8080, "app")
    assert mesh.code("web", "http://10.96.0.1/") == "000"
    mesh.proxy("app")
    mesh.proxy("web")
    wait_for(lambda: mesh.code("web", "http://10.96.0.1/") == "200", "the first request")
    mesh.in_sync("web", "app")
    load = mesh.load("web", "app.shop", address="10.96.0.1")
    load.more(20)
    # The control plane is cut off, without a word.
    hub = mesh.net.hub
    rule = "add rule ip cut input tcp dport 15012 drop"
    for line in ["add table ip cut", "add chain ip cut input { type filter hook input priority 0 ; }", rule]:
        mesh.run(None, "nft", line)
    wait_for(lambda: not any(n["state"] == "in_sync" for n in mesh.status().values()) or not mesh.status(), "the partition being noticed", 90)
    load.more(50)
    mesh.write("mesh", mesh_resource("Strict"))
    mesh.run(None, "nft", "delete table ip cut")
    wait_for(lambda: (nodes := mesh.status()) and len(nodes) == 2 and all(n["state"] == "in_sync" for n in nodes.values()), "in sync again", 90)
    load.more(20)
    load.none_failed()


def test_a_machine_that_vanishes_without_a_word(tmp_path):
    """Its cable is pulled: no kernel closes its connections, and its endpoint is out of every proxy all the same."""
    callers = ("web", "guest")
    with spaces(tmp_path, *callers, "gone", "here") as mesh:
        net = mesh.net
        port = [{"name": "http", "port": 8080}]
        mesh.write("shop", "".join(workload(name, net.address(name), []) for name in callers)
                   + workload("here", net.address("here"), port, app="app") + service("app", 80, 8080, {"app": "app"}, "10.96.0.1", "http"))
        file = tmp_path / "gone.workload"
        file.write_text(workload("gone", net.address("gone"), port, app="app"))
        for name in ("gone", "here"):
            mesh.peer(name, "http", "0.0.0.0", 8080, name)
        for name in (*callers, "gone", "here"):
            capture(mesh, name)
        mesh.proxy("gone", "--register", file, workload=False)
        for name in (*callers, "here"):
            mesh.proxy(name)
        seen = lambda caller: {mesh.says(caller, "http://10.96.0.1/")["name"] for _ in range(4)}
        for caller in callers:
            wait_for(lambda: seen(caller) == {"gone", "here"}, f"both being called by {caller}")

        def known(name):
            return net.address("gone") in mesh.admin_get(name, "/clusters")

        # A machine that is busy may be taken for silent for a moment.
        wait_for(lambda: all(known(name) for name in callers), "it being known")
        pulled = time.monotonic()
        net.cable("gone", "down")
        for name in callers:
            wait_for(lambda: not known(name), f"the silent machine being out of {name}")
            print(f"out of {name} after {time.monotonic() - pulled:.2f} s")
        # 0.7 s of silence, and what it takes to tell; a machine that is busy may be late.
        assert time.monotonic() - pulled < 8, time.monotonic() - pulled
        assert "says nothing any more" in mesh.log("control"), "its silence is why"
        assert all(seen(caller) == {"here"} for caller in callers)
        net.cable("gone", "up")
        for caller in callers:
            wait_for(lambda: seen(caller) == {"gone", "here"}, f"it being back for {caller}", 90)
