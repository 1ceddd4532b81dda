"""Identities end to end: a control plane with its own CA, a proxy that joins with a token, the SPIFFE Workload API with the
client from PyPI, rotation, revocation, and curl with an SVID."""
import os
import signal
import subprocess
import time

import pytest
from conftest import BIN, free_port, wait_for
from spiffe import WorkloadApiClient
from spiffe.workloadapi.errors import FetchX509SvidError, WorkloadApiError

ID = "spiffe://mesh.example/ns/shop/sa/orders"


def path_of(socket):
    return f"unix:{socket}"


class Fleet:
    """`selvedge control` with a CA whose certificates live for seconds, and proxies that join."""

    def __init__(self, folder, ttl="6s"):
        self.folder = folder
        self.state = folder / "control"
        self.port = free_port()
        self.ttl = ttl
        self.running = []
        (folder / "resources").mkdir()
        (folder / "resources/shop.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
        self.control = self.start_control()

    def start(self, name, *args, **kwargs):
        log = self.folder / f"{name}.log"
        with open(log, "ab") as out:
            process = subprocess.Popen([BIN, *map(str, args)], stdout=out, stderr=out, **kwargs)
        self.running.append(process)
        return process

    def start_control(self):
        control = self.start(
            "control", "control", "-f", self.folder / "resources", "--state", self.state, "--admin", "off",
            "--listen", f"127.0.0.1:{self.port}", "--trust-domain", "mesh.example", "--svid-ttl", self.ttl,
        )
        wait_for(lambda: self.ask("ca", "show").returncode == 0, "the control plane answering")
        return control

    def ask(self, *args):
        command = [BIN, *args, "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    def token(self, *args):
        made = self.ask("token", "create", "--identity", "shop/orders", *args)
        assert made.returncode == 0, made.stderr
        file = self.folder / f"token-{time.monotonic_ns()}"
        file.write_text(made.stdout)
        return file

    def proxy(self, name, token, *args, trust_domain=None):
        socket = self.folder / f"{name}.sock"
        more = ["--trust-domain", trust_domain] if trust_domain else []
        self.start(
            name, "proxy", "--control", f"https://127.0.0.1:{self.port}", "--role", "sidecar", "--workload", "shop/orders",
            "--identity", "shop/orders", "--join-token-file", token, "--workload-api", socket, "--admin", "off",
            "--state", self.folder / name, *more, *args,
        )
        wait_for(socket.exists, "the Workload API")
        return socket

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def stop(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.stop()


def svid(socket):
    with WorkloadApiClient(path_of(socket)) as client:
        return client.fetch_x509_svid()


def test_the_pypi_client_fetches_and_is_told_of_each_rotation(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    first = wait_for(lambda: svid(socket), "the first SVID")
    assert str(first.spiffe_id) == ID
    assert len(first.cert_chain) == 2
    contexts, failures = [], []
    with WorkloadApiClient(path_of(socket)) as client:
        watch = client.stream_x509_contexts(contexts.append, failures.append)
        wait_for(lambda: len(contexts) >= 4, "three rotations being pushed", 30)
        watch.cancel()
        bundles = client.fetch_x509_bundles()
        roots = bundles.get_bundle_for_trust_domain(first.spiffe_id.trust_domain).x509_authorities
        assert len(roots) == 1
        with pytest.raises(WorkloadApiError) as refused:
            client.fetch_jwt_svid(audience={"anybody"})
        assert "only X.509" in str(refused.value)
    assert not failures, failures
    serials = [context.default_svid.leaf.serial_number for context in contexts]
    assert len(set(serials)) == len(serials)
    keys = {context.default_svid.private_key.private_numbers().private_value for context in contexts}
    assert len(keys) == len(contexts), "each certificate has a key of its own"


def test_without_the_header_and_for_other_users_there_is_nothing(fleet):
    grpc = pytest.importorskip("grpc")
    socket = fleet.proxy("proxy", fleet.token(), "--workload-api-user", "65534=shop/orders")
    wait_for(lambda: "a new certificate is in use" in fleet.log("proxy"), "the first SVID")
    with grpc.insecure_channel(path_of(socket)) as channel:
        fetch = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        with pytest.raises(grpc.RpcError) as refused:
            next(fetch(b"", timeout=5))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    if os.getuid() != 65534:
        with pytest.raises(FetchX509SvidError) as refused:
            svid(socket)
        assert "is not named" in str(refused.value)


def test_tokens_say_what_is_wrong_with_them(fleet):
    token = fleet.token()
    fleet.proxy("first", token)
    wait_for(lambda: "a new certificate is in use" in fleet.log("first"), "the first SVID")
    fleet.proxy("second", token)
    wait_for(lambda: "was used already" in fleet.log("second"), "the refusal of a used token")
    short = fleet.token("--ttl", "1s")
    time.sleep(1.1)
    fleet.proxy("third", short)
    wait_for(lambda: "expired" in fleet.log("third"), "the refusal of an expired token")
    damaged = fleet.folder / "damaged"
    text = token.read_text().strip()
    damaged.write_text(text[:20] + ("A" if text[20] != "A" else "B") + text[21:])
    done = subprocess.run(
        [BIN, "proxy", "--control", f"https://127.0.0.1:{fleet.port}", "--role", "sidecar", "--workload", "shop/orders",
         "--identity", "shop/orders", "--join-token-file", damaged, "--no-state", "--admin", "off"],
        capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "copy it again" in done.stderr
    (fleet.folder / "other").mkdir()
    other = Fleet(fleet.folder / "other")
    try:
        token = other.token()
        other.port = fleet.port
        other.proxy("stranger", token)
        wait_for(lambda: "is not the one of the join token" in other.log("stranger"), "another control plane being refused")
    finally:
        other.stop()


def test_control_killed_and_started_again_and_a_restart_without_it(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    first = wait_for(lambda: svid(socket), "the first SVID")
    fleet.control.send_signal(signal.SIGKILL)
    fleet.control.wait()
    fleet.running[-1].kill()
    fleet.running[-1].wait()
    socket = fleet.proxy("proxy", fleet.folder / "no-token", trust_domain="mesh.example")
    kept = wait_for(lambda: svid(socket), "the saved SVID", 4)
    assert kept.leaf.not_valid_after_utc >= first.leaf.not_valid_after_utc
    fleet.start_control()
    renewed = wait_for(lambda: (s := svid(socket)).leaf.serial_number != kept.leaf.serial_number and s, "renewal", 30)
    assert str(renewed.spiffe_id) == ID
    assert renewed.cert_chain[1].issuer == first.cert_chain[1].issuer, "the CA is the same after a kill"


def test_roots_rotate_and_identities_are_revoked_while_all_goes_on(fleet):
    socket = fleet.proxy("proxy", fleet.token())
    wait_for(lambda: svid(socket), "the first SVID")

    def roots():
        with WorkloadApiClient(path_of(socket)) as client:
            return len(client.fetch_x509_bundles().get_bundle_for_trust_domain(svid(socket).spiffe_id.trust_domain).x509_authorities)

    assert fleet.ask("ca", "rotate", "root").returncode == 0
    wait_for(lambda: roots() == 2, "the next root being in the bundle", 5)
    again = fleet.ask("ca", "rotate", "root")
    assert again.returncode == 1 and "is being rotated already" in again.stderr
    wait_for(lambda: "next" not in fleet.ask("ca", "show").stdout, "the next root signing", 30)
    before = svid(socket).leaf.serial_number
    wait_for(lambda: svid(socket).leaf.serial_number != before, "a certificate under the new root", 20)
    assert fleet.ask("ca", "revoke", "--identity", "shop/orders").returncode == 0
    wait_for(lambda: "revoked" in fleet.log("proxy"), "the proxy hearing of its revocation", 5)


def test_openssl_verifies_what_the_ca_issues(fleet, tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding

    socket = fleet.proxy("proxy", fleet.token())
    got = wait_for(lambda: svid(socket), "the first SVID")
    with WorkloadApiClient(path_of(socket)) as client:
        bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(got.spiffe_id.trust_domain)
    files = {"root": bundle.x509_authorities, "chain": got.cert_chain[1:], "leaf": [got.leaf]}
    for name, certificates in files.items():
        (tmp_path / name).write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    for purpose in ["sslclient", "sslserver"]:
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", tmp_path / "root",
             "-untrusted", tmp_path / "chain", tmp_path / "leaf"],
            capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
