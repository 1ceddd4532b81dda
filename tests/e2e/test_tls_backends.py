"""Backends that speak TLS, by appProtocol and BackendTLSPolicy: HTTPS, secure WebSockets, certificates that are trusted as such."""
import asyncio
import json
import ssl
import threading

import pytest
import websockets
from backend import Backend, gateway_resource, policy, simple
from conftest import Gateway, curl, free_port, service, wait_for, whole_lines
from test_streams import certificate, config_map


def secure_websocket(context):
    ready, found = threading.Event(), []

    async def serve():
        async def echo(socket):
            async for message in socket:
                await socket.send(f"secure {message}")
        async with websockets.serve(echo, "127.0.0.1", 0, ssl=context) as server:
            found.append(server.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.Future()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    assert ready.wait(60)
    return found[0]


def tls_policy(name, ca, hostname="shop.example"):
    return "\n---\n" + json.dumps({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy", "metadata": {"name": name},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": name}],
                 "validation": {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": ca}], "hostname": hostname}}}) + "\n"


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    keys, folder, port = tmp_path_factory.mktemp("keys"), tmp_path_factory.mktemp("tls"), free_port()
    ca = certificate(keys, "ca", names=("ca.example",))
    shop = certificate(keys, "shop", ca, names=("shop.example",))
    own = certificate(keys, "own", names=("shop.example",))
    stranger = certificate(keys, "stranger", names=("shop.example",))

    def context(stem):
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_cert_chain(f"{stem}.crt", f"{stem}.key")
        return found

    logs = folder.parent / "tls-access.log"
    text = gateway_resource([{"name": "http", "port": port, "protocol": "HTTP"}])
    text += policy("log", "Gateway", "edge", {"telemetry": {"accessLog": {"path": str(logs)}}})
    text += config_map("ca", f"{ca}.crt") + config_map("own", f"{own}.crt")
    web, pinned = Backend("web", context=context(shop)), Backend("pinned", context=context(own))
    text += service("web", 80, [web.port], "https") + tls_policy("web", "ca") + simple("web", "web")
    text += service("wss", 80, [secure_websocket(context(shop))], "kubernetes.io/wss") + tls_policy("wss", "ca") + simple("wss", "wss")
    text += service("pinned", 80, [pinned.port]) + tls_policy("pinned", "own") + simple("pinned", "pinned")
    text += service("other", 80, [pinned.port]) + tls_policy("other", "own", "other.example") + simple("other", "other")
    text += service("stranger", 80, [Backend("stranger", context=context(stranger)).port]) + tls_policy("stranger", "own") + simple("stranger", "stranger")
    text += service("clear", 80, [Backend("clear").port], "https") + tls_policy("clear", "ca") + simple("clear", "clear")
    folder.joinpath("gateway.yaml").write_text(text)
    running = Gateway(folder)
    errors = [d for d in running.status()["diagnostics"] if d["severity"] == "error"]
    assert not errors, errors[:3]
    running.port, running.logs = port, logs
    yield running
    assert running.stop() in (0, 3)


def ask(edge, path):
    *body, status = curl("-w", "\n%{http_code}", f"http://127.0.0.1:{edge.port}{path}").rsplit("\n", 1)
    return int(status), body[0]


def test_https_by_app_protocol(edge):
    status, body = ask(edge, "/web")
    assert status == 200 and json.loads(body)["backend"] == "web"
    assert ask(edge, "/clear")[0] == 503, "what is declared as https is never spoken to in the clear"


def test_secure_websockets_by_app_protocol(edge):
    async def talk():
        async with websockets.connect(f"ws://127.0.0.1:{edge.port}/wss") as socket:
            for i in range(3):
                await socket.send(str(i))
                assert await socket.recv() == f"secure {i}"
    asyncio.run(talk())


def test_a_certificate_that_is_trusted_as_such(edge):
    status, body = ask(edge, "/pinned")
    assert status == 200 and json.loads(body)["backend"] == "pinned"
    for path, why in (("/other", "for another name"), ("/stranger", "not one that is trusted")):
        assert ask(edge, path)[0] == 503
        line = wait_for(lambda: [json.loads(l) for l in whole_lines(edge.logs) if f'"{path}"' in l], f"the line of {path}")[0]
        assert "UF" in line["flags"] and why in line["status_details"], line
