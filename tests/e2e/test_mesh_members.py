"""Workloads that join by themselves, what is outside of the mesh, and names as each network namespace may write them."""
import collections
import socket
import struct
import time

import pytest
from conftest import BIN, free_port, wait_for
from mesh import DOMAIN, inside, resource, workload
from mesh_fixtures import local, spaces


def test_a_workload_that_registers_is_checked_by_grpc(local, tmp_path):
    pytest.importorskip("grpc")
    mesh = local()
    mesh.net.add("late")
    address, port, said = mesh.net.address("late"), free_port(), tmp_path / "health"
    said.write_text("NOT_SERVING")
    mesh.peer("late", "http", address, 8080, "late")
    mesh.peer("late", "health", address, port, said, label="late-health")
    check = {"type": "GRPC", "service": "shop", "port": port, "interval": "100ms", "healthyThreshold": 1, "unhealthyThreshold": 1}
    file = tmp_path / "late.yaml"
    file.write_text(workload("late", address, [{"name": "http", "port": 8080}], app="app", healthCheck=check))
    mesh.proxy("late", "--register", file, workload=False)
    who = lambda: collections.Counter(mesh.says("web", "http://app.shop/")["name"] for _ in range(10))
    mesh.in_sync("late")
    assert set(who()) == {"app"}, "it is not well yet"
    said.write_text("SERVING")
    wait_for(lambda: who()["late"] > 2, "the workload that is well taking its share")
    said.write_text("NOT_SERVING")
    wait_for(lambda: set(who()) == {"app"}, "the workload that is not well being out")
    wait_for(lambda: "NOT_SERVING" in mesh.log("late"), "the reason in the log")


def test_a_policy_for_an_external_service_is_kept_by_the_client(local):
    mesh = local()
    mesh.net.add("outside")
    address = mesh.net.address("outside")
    mesh.peer("outside", "http", address, 8080, "outside")
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "strict", "port": 81, "targetPort": 8080, "appProtocol": "http"}]
    spec = {"hosts": ["outside.example"], "ports": ports, "resolution": "Static", "endpoints": [{"address": address}]}
    outside = resource("ExternalService", "outside", spec)
    mesh.write("outside", outside)
    url = "http://outside.example"
    wait_for(lambda: mesh.code("web", f"{url}/") == "200", "the outside being reached")
    assert mesh.code("web", f"{url}/fail/2/{time.monotonic_ns()}") == "503"
    assert mesh.code("web", f"{url}/slow") == "200"
    target = lambda **more: [{"kind": "ExternalService", "name": "outside", **more}]
    mesh.write("outside", outside + resource("TrafficPolicy", "outside", {
        "targetRefs": target(), "retry": {"attempts": 3, "codes": [503], "backoff": {"base": "10ms"}}, "connections": {"maxRequests": 1, "maxPendingRequests": 1},
    }) + resource("TrafficPolicy", "strict", {"targetRefs": target(sectionName="strict"), "timeouts": {"request": "300ms"}}))
    wait_for(lambda: mesh.code("web", f"{url}:81/slow") == "504", "the time limit of one port")
    assert mesh.code("web", f"{url}/slow") == "200", "the other one has none"
    assert mesh.code("web", f"{url}/fail/2/{time.monotonic_ns()}") == "200", "retried"
    # One request at a time: more are refused by the client's own proxy.
    loads = [mesh.load("web", "outside.example", threads=1) for _ in range(4)]
    wait_for(lambda: any(failure[1] == 503 for load in loads for failure in load.failed), "a request over the limit being refused")
    for load in loads:
        load.stop()
    assert not mesh.status()["web"].get("last_nack")


def addresses(name, server="127.0.0.1", port=15053):
    """What a DNS server answers to a query for A records."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)

        def ask():
            s.sendto(struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", 1, 1), (server, port))
            return s.recv(4096)

        answer = wait_for(ask, f"an answer about {name}")
    count = struct.unpack(">H", answer[6:8])[0]
    return [socket.inet_ntoa(answer[at:at + 4]) for at in range(len(answer) - 4, 0, -16)][:count]


def test_a_node_proxy_answers_each_workload_as_of_its_own_namespace(tmp_path):
    with spaces(tmp_path, "web", "db") as mesh:
        net = mesh.net
        cache = lambda namespace, ip: resource(
            "Service", "cache", {"clusterIP": ip, "ports": [{"name": "tcp", "port": 6379}]}, api="v1", namespace=namespace)
        mesh.write("two", workload("web", net.address("web"), []) + workload("db", net.address("db"), [], namespace="data")
                   + cache("shop", "10.96.1.1") + cache("data", "10.96.1.2"))
        accounts = ["selvedge-system/node", "shop/web", "data/db"]
        (tmp_path / "tokens").write_text("".join(mesh.token(account) for account in accounts))
        mesh.spawn(
            "node", None, BIN, "proxy", "--control", f"https://{net.control}:{mesh.port}", "--role", "node", "--id", "node",
            *[word for account in accounts for word in ("--identity", account)], "--trust-domain", DOMAIN,
            "--join-token-file", tmp_path / "tokens", "--state", tmp_path / "node.state", "--admin", "off", "--capture",
            "--workload", f"shop/web@{net.space('web')}", "--workload", f"data/db@{net.space('db')}",
            "--dns", "--dns-upstream", "10.99.0.1:53")
        mesh.in_sync("node")
        asks = lambda where, name: inside(net.space(where), lambda: addresses(name))
        wait_for(lambda: asks("web", "cache") == ["10.96.1.1"], "the name of web's namespace")
        wait_for(lambda: asks("db", "cache") == ["10.96.1.2"], "the same name in db's namespace")
        assert asks("web", "cache.data") == ["10.96.1.2"] and asks("db", "cache.shop") == ["10.96.1.1"]
