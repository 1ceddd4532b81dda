"""What is wrong is named, with the way out, and nothing opens that was closed."""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

import pytest
from conftest import BIN, free_port, wait_for
from mesh import DOMAIN, Loopback, Mesh, Spaces, mesh_resource, resource, service, sh, why_not, workload
from mesh_fixtures import local, shop


def said(mesh, name, *words):
    wait_for(lambda: all(word in mesh.log(name) for word in words), f"{words} in {mesh.folder}/{name}.log")


def test_join_tokens_that_are_no_good(local):
    mesh = local(servers=("app", "app2"))
    # Another name, so that no certificate is there yet.
    mesh.kill(mesh.proxies["app2"])
    mesh.net.add("late")
    attempts = {
        "used": ((mesh.folder / "web.token").read_text(), "web", "was used already"),
        "expired": (mesh.token("app", "--ttl", "1s"), "app", "expired"),
        "of another": (mesh.token("app2"), "web", "is for"),
    }
    time.sleep(1.1)
    for name, (token, account, words) in attempts.items():
        label = f"late-{name.replace(' ', '-')}"
        mesh.net.names[label] = mesh.net.names["late"]
        (mesh.folder / f"{label}.token").write_text(token)
        process = mesh.proxy(label, account=account, wait=False)
        said(mesh, label, words)
        with pytest.raises(OSError):
            socket.create_connection((mesh.net.address(label), 15008), timeout=1).close()
        mesh.kill(process)
    damaged = mesh.folder / "damaged.token"
    text = mesh.token("app").strip()
    damaged.write_text(text[:20] + ("A" if text[20] != "A" else "B") + text[21:])
    mesh.net.names["damaged"] = mesh.net.names["late"]
    process = mesh.proxy("damaged", account="app", wait=False)
    assert process.wait(60) == 1
    said(mesh, "damaged", "copy it again")
    mesh.proxy("app2")
    assert mesh.code("web", "http://app.shop/") == "200"


def test_a_control_plane_of_another_trust_domain(local, tmp_path):
    mesh = local()
    # Somebody else's control plane comes to the same address.
    mesh.kill(mesh.control)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "conf").mkdir()
    other = mesh.spawn(
        "other", None, BIN, "control", "-f", folder / "conf", "--state", folder / "state", "--trust-domain", "other.example",
        "--listen", f"{mesh.net.control}:{mesh.port}", "--admin", "off")
    wait_for(lambda: "serving proxies" in mesh.log("other"), "the other control plane")
    # A tunnel between members needs nobody's leave.
    said(mesh, "web", "other.example")
    assert mesh.code("web", "http://app.shop/") == "200", "what was there goes on"
    mesh.kill(other)
    mesh.start_control()
    mesh.in_sync("web", "app")


def test_two_workloads_with_one_address(local):
    mesh = local()
    twin = workload("zwilling", mesh.net.address("app"), [{"name": "http", "port": 8080}], app="app")
    mesh.write("twin", twin)
    said(mesh, "control", "SELV0220", "shop/zwilling", "is the address of", "until its address is changed")
    checked = subprocess.run([BIN, "check", "-f", mesh.folder / "conf"], capture_output=True, text=True, timeout=100)
    assert checked.returncode != 0 and "is the address of" in checked.stdout + checked.stderr
    assert all(mesh.code("web", "http://app.shop/") == "200" for _ in range(4))
    mesh.remove("twin")


def test_what_is_broken_changes_nothing(local):
    mesh = local()
    deny = resource("AccessPolicy", "closed", {"action": "Deny", "rules": [{"to": [{"paths": ["/closed"]}]}]})
    mesh.write("policy", deny)
    wait_for(lambda: mesh.code("web", "http://app.shop/closed") == "403", "the policy being in effect")
    mesh.write("policy", deny.replace("/closed", "{not closed"))
    said(mesh, "control", "AccessPolicy shop/closed")
    # A policy that is wrong denies everything, and opens nothing.
    wait_for(lambda: mesh.code("web", "http://app.shop/open") == "403", "its targets denying")
    assert mesh.code("web", "http://app.shop/closed") == "403"
    mesh.write("policy", "this: [is no resource")
    mesh.settle()
    assert mesh.code("web", "http://app.shop/closed") == "403", "a file that cannot be read opens nothing"
    mesh.write("policy", deny)
    wait_for(lambda: mesh.code("web", "http://app.shop/open") == "200", "everything being well again")
    assert mesh.code("web", "http://app.shop/closed") == "403"
    # A whole mesh that is wrong: the mode stays.
    mesh.write("mesh", mesh_resource("Strict").replace("Strict", "Strickt"))
    said(mesh, "control", "Strickt")
    mesh.settle()
    assert mesh.code("web", "http://app.shop/closed") == "403"


def test_a_broken_mesh_opens_nothing(shop):
    url = f"http://{shop.net.address('apps')}:8080/"
    outside = lambda: shop.run("outside", "curl", "-sS", "-o", "/dev/null", "--max-time", 60, url, check=False).returncode
    refused = lambda: shop.metric("apps", "selvedge_mesh_refused_total", 'reason="clear_text"')

    def closed():
        before = refused()
        assert outside() != 0, "clear text is taken"
        wait_for(lambda: refused() > before, "the refusal being counted")
        assert shop.code("web", "http://10.96.0.2/") == "200", "members go on"

    try:
        assert outside() == 0
        shop.write("mesh", mesh_resource("Strict"))
        wait_for(lambda: outside() != 0, "clear text being refused")
        closed()
        shop.write("mesh", mesh_resource("Strict").replace("Strict", "Strickt"))
        said(shop, "control", "Strickt")
        shop.settle()
        closed()
        # Who starts now has never seen it whole.
        shop.kill(shop.control)
        told = shop.log("control").count("Strickt")
        shop.start_control()
        wait_for(lambda: shop.log("control").count("Strickt") > told, "the control plane telling of it again")
        shop.settle()
        closed()
        shop.kill(shop.proxies["apps"])
        shop.proxy("apps")
        shop.settle()
        closed()
    finally:
        shop.write("mesh", mesh_resource())
        shop.settle()
    wait_for(lambda: outside() == 0, "the mesh being whole and permissive again")


def test_capture_without_rights(tmp_path):
    if why := why_not():
        pytest.skip(why)
    net = Spaces()
    try:
        net.add("web")
        nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"]
        # Nobody may not run the binary where it is, if that is below somebody's home.
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            binary = shutil.copy(BIN, folder)
            done = subprocess.run(
                ["ip", "netns", "exec", net.space("web"), *nobody, binary, "capture", "apply"],
                capture_output=True, text=True, env=os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}, timeout=100)
        assert done.returncode == 1 and "CAP_NET_ADMIN is missing; run it as root" in done.stderr, done.stderr
        assert sh(f"ip netns exec {net.space('web')} nft list ruleset").stdout == "", "nothing half done"
    finally:
        net.close()


def test_a_full_disk_under_the_ca(tmp_path):
    if why := why_not():
        pytest.skip(why)
    disk = tmp_path / "disk"
    disk.mkdir()
    if sh(f"mount -t tmpfs -o size=4m sv-e2e {disk}", check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    mesh = None
    try:
        net = Loopback()
        for name in ("web", "app"):
            net.add(name)
        mesh = Mesh(tmp_path, net, "--ca-store", disk / "ca.redb", "--ca-key-file", tmp_path / "ca.key")
        mesh.write("shop", workload("web", net.address("web"), []) + workload("app", net.address("app"), [{"name": "http", "port": 8080}])
                   + service("app", 80, 8080, {"app": "app"}, None, "http"))
        mesh.peer("app", "http", net.address("app"), 8080, "app")
        for name in ("web", "app"):
            mesh.proxy(name)
        wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "the first request")
        # Room made scarce, then used up by tokens.
        with open(disk / "fill", "wb", buffering=0) as fill:
            try:
                while True:
                    fill.write(b"x" * 4096)
            except OSError:
                pass
        refused = None
        for _ in range(300):
            made = mesh.ask("token", "create", "--identity", "shop/app")
            if made.returncode != 0:
                refused = made.stderr
                break
        assert refused and "full" in refused and str(disk) in refused, refused
        assert mesh.control.poll() is None, "the control plane lives on"
        assert mesh.code("web", "http://app.shop/") == "200", "traffic goes on"
        (disk / "fill").unlink()
        assert mesh.token("app"), "with room again it works again"
    finally:
        if mesh:
            mesh.stop()
        sh(f"umount {disk}", check=False)


def test_a_resource_that_a_proxy_refuses(local, tmp_path):
    from test_mesh_certificates import Authority

    mesh = local()
    port, authority = free_port(), Authority("edge")
    cert, key = authority.leaf(tmp_path, "edge", "https://edge.example")
    listener = {"name": "https", "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "edge"}]}}
    gateway = resource("Gateway", "edge", {"gatewayClassName": "selvedge", "listeners": [listener]}, api="gateway.networking.k8s.io/v1")

    def secret(certificate):
        data = {"tls.crt": certificate, "tls.key": key.read_text()}
        return "---\n" + json.dumps({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "stringData": data,
                                     "metadata": {"name": "edge", "namespace": "shop"}})

    mesh.write("edge", gateway)
    mesh.write("secret", secret(cert.read_text()))
    (tmp_path / "edge.token").write_text(mesh.token("edge"))
    mesh.spawn("edge", None, BIN, "proxy", "--control", f"https://{mesh.net.control}:{mesh.port}", "--role", "gateway", "--id", "edge",
               "--identity", "shop/edge", "--join-token-file", tmp_path / "edge.token", "--no-state", "--admin", "off", "--workers", 1)
    shakes = lambda: "issuer=CN = edge" in subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"], input="", capture_output=True, text=True, timeout=100).stdout
    wait_for(shakes, "the certificate being served")
    mesh.in_sync("edge")
    mesh.write("secret", secret("no certificate"))
    status = lambda: subprocess.run([BIN, "status", "--control", f"{mesh.net.control}:{mesh.admin}"], capture_output=True, text=True, timeout=100)
    refusing = wait_for(lambda: "REFUSING" in (done := status()).stdout and done, "the refusal")
    assert refusing.returncode == 1 and "last refusal" in refusing.stdout and "Secret shop/edge" in refusing.stdout, refusing.stdout
    assert shakes(), "the last good one is served"
    mesh.write("secret", secret(cert.read_text()))
    wait_for(lambda: status().returncode == 0, "all being in sync again")
