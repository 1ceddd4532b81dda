"""`selvedge status` and the metrics of a control plane: proxies that are gone, and workloads that nobody knows."""
import signal
import subprocess
import urllib.request

from conftest import BIN, free_port, wait_for
from cryptography import x509
from mesh import DOMAIN, workload
from mesh_fixtures import local
from test_mesh_certificates import Authority, pem, put, write


def status(mesh, *controls):
    at = ",".join(controls) or f"{mesh.net.control}:{mesh.admin}"
    return subprocess.run([BIN, "status", "--control", at], capture_output=True, text=True, timeout=100)


def metric(mesh, series):
    with urllib.request.urlopen(f"http://{mesh.net.control}:{mesh.admin}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(line.removeprefix(f"{series} ")) for line in lines if line.startswith(f"{series} "))


def proxies(mesh, role, state):
    return metric(mesh, f'selvedge_control_proxies{{role="{role}",state="{state}"}}')


def test_proxies_that_are_gone_stay_in_the_list(local):
    mesh = local()
    mesh.in_sync("web", "app")
    wait_for(lambda: status(mesh).returncode == 0, "all being well")
    assert proxies(mesh, "sidecar", "in_sync") == 2
    mesh.kill(mesh.proxies["app"])
    gone = wait_for(lambda: "GONE" in (done := status(mesh)).stdout and done, "the dead proxy being shown as gone")
    assert gone.returncode == 1 and "went without a word" in gone.stdout and "1 proxies, 1 in sync; 1 gone" in gone.stdout, gone.stdout
    assert (proxies(mesh, "sidecar", "in_sync"), proxies(mesh, "sidecar", "gone")) == (1, 1)
    mesh.proxy("app")
    wait_for(lambda: (done := status(mesh)).returncode == 0 and "GONE" not in done.stdout, "it being back")
    assert proxies(mesh, "sidecar", "gone") == 0
    # Who says goodbye is no reason to worry.
    mesh.kill(mesh.proxies["app"], signal.SIGTERM)
    left = wait_for(lambda: "said goodbye" in (done := status(mesh)).stdout and done, "the goodbye")
    assert left.returncode == 0 and " left " in left.stdout, left.stdout
    assert (proxies(mesh, "sidecar", "left"), proxies(mesh, "sidecar", "gone")) == (1, 0)


def test_a_workload_that_nobody_knows(local):
    mesh = local()
    mesh.write("shop", workload("web", mesh.net.address("web"), []))
    # It is `updating` for as long as the removal is on its way to it.
    told = wait_for(lambda: "ERRORS" in (done := status(mesh)).stdout and done, "the missing Workload")
    assert told.returncode == 1 and "no Workload shop/app" in told.stdout and "--register" in told.stdout, told.stdout
    wait_for(lambda: proxies(mesh, "sidecar", "errors") == 1, "the metric")


def test_a_node_that_was_not_given_the_identity_of_a_workload(local):
    """SELV0226: it could prove nothing for that workload, and says so, until it is given the identity."""
    mesh = local()
    mesh.kill(mesh.proxies["app"], signal.SIGTERM)
    address = mesh.net.address("app")

    def node(*identities):
        more = []
        for account in ("selvedge-system/node", *identities):
            more += ["--identity", account]
        tokens = mesh.folder / "node.token"
        tokens.write_text("".join(mesh.token(account) for account in ("selvedge-system/node", *identities)))
        admin = ("127.0.0.1", free_port())
        process = mesh.spawn(
            "node", "app", BIN, "proxy", "--control", f"https://{mesh.net.control}:{mesh.port}", "--role", "node", "--id", "node",
            "--trust-domain", DOMAIN, "--join-token-file", tokens, "--workload", "shop/app", "--hbone", f"{address}:15008",
            "--http-proxy", f"127.0.0.1:{free_port()}", "--workers", 1, "--state", mesh.folder / "node.state",
            "--admin", f"{admin[0]}:{admin[1]}", *more)
        process.admin = admin
        mesh.proxies["node"] = process
        return process

    first = node()
    wait_for(lambda: "SELV0226" in mesh.admin_get("node", "/status"), "the missing identity being told of")
    log = mesh.log("node")
    assert "SELV0226" in log and "--identity shop/app" in log, log[-2000:]
    assert mesh.code("web", "http://app.shop/") != "200", "nothing is proved for it"
    mesh.kill(first, signal.SIGTERM)
    node("shop/app")
    wait_for(lambda: mesh.code("web", "http://app.shop/") == "200", "the workload being served")
    assert "SELV0226" not in mesh.admin_get("node", "/status")


def test_an_intermediate_from_files_that_comes_to_its_end(local, tmp_path):
    root = Authority("root")
    below = Authority("intermediate", root)

    def files(days, begin):
        below.certificate = root.sign(below.name, below.key.public_key(), days, x509.BasicConstraints(True, None), authority=True, begin=begin)
        return write(tmp_path, "ca", [below.certificate], below.key)

    chain, key = files(days=4, begin=6)
    (tmp_path / "root.pem").write_bytes(pem([root.certificate]))
    mesh = local("--ca-intermediate", chain, "--ca-intermediate-key", key, "--ca-roots", tmp_path / "root.pem")
    alarm = lambda: metric(mesh, 'selvedge_ca_alarm{authority="intermediate"}')
    assert alarm() == 1 and metric(mesh, 'selvedge_ca_alarm{authority="root"}') == 0
    wait_for(lambda: "half of the life of the CA's authority is over" in mesh.log("control"), "the alarm in the log")
    assert metric(mesh, 'selvedge_ca_expiry_timestamp_seconds{authority="intermediate"}') == int(below.certificate.not_valid_after_utc.timestamp())
    shown = mesh.ask("ca", "show").stdout
    assert below.certificate.not_valid_after_utc.strftime("ends %Y-%m-%dT%H:%M:%SZ (in ") in shown, shown
    files(days=1, begin=9)
    wait_for(lambda: alarm() == 2, "the alarm at four fifths")
    # A key that does not fit, and one that has ended: told of once, and the former one signs.
    good = key.read_bytes()
    put(key, write(tmp_path, "other", [root.certificate], root.key)[1].read_bytes())
    unusable = lambda: metric(mesh, "selvedge_ca_files_unusable")
    wait_for(lambda: unusable() == 1, "files that do not fit")
    put(key, good)
    wait_for(lambda: unusable() == 0, "files that fit again")
    files(days=-1, begin=3)
    wait_for(lambda: unusable() == 1, "an intermediate that has ended")
    said = mesh.log("control").count("cannot be used; the former ones stay")
    assert said == 2, said
    assert (alarm(), mesh.code("web", "http://app.shop/")) == (2, "200")
    files(days=30, begin=1)
    wait_for(lambda: (alarm(), unusable()) == (0, 0), "a fresh one")
