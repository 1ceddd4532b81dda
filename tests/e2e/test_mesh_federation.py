"""Two meshes, each with its own control plane, CA and trust domain, that believe each other's identities for as long as they say so."""
import json

import pytest
from conftest import wait_for
from mesh import mesh_resource, resource, service, workload
from mesh_fixtures import local
from test_mesh_certificates import Authority, pem

A, B = "a.example", "b.example"


def config_map(roots):
    metadata = {"name": "federated", "namespace": "selvedge-system"}
    return "---\n" + json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": roots}}) + "\n"


def believes(mesh, other, roots):
    """`mesh` takes identities of `other` that lead to `roots`; None: it takes none."""
    bundle = {"configMap": {"namespace": "selvedge-system", "name": "federated"}} if mesh.domain == A else {"pem": roots}
    federation = [{"trustDomain": other.domain, "bundle": bundle}] if roots else []
    text = config_map(roots) if roots and mesh.domain == A else ""
    mesh.write("mesh", mesh_resource("Strict", trustDomain=mesh.domain, federation=federation) + text)
    mesh.settle()


def roots(mesh):
    said = mesh.ask("ca", "roots")
    assert said.returncode == 0 and said.stdout.startswith("-----BEGIN CERTIFICATE-----"), said.stderr
    return said.stdout


@pytest.fixture
def two(local):
    """Meshes that believe each other; `far.shop` of each is `app` of the other."""
    a, b = local(domain=A), local(domain=B)
    for mesh, other in [(a, b), (b, a)]:
        there = workload("far", other.net.address("app"), [{"name": "http", "port": 8080}], account="app", trustDomain=other.domain)
        mesh.write("far", there + service("far", 80, 8080, {"app": "far"}, None, "http"))
        believes(mesh, other, roots(other))
    for mesh in (a, b):
        wait_for(lambda: far(mesh) == "200", f"the first call out of {mesh.domain}; {mesh.folder}")
    return a, b


def far(mesh):
    return mesh.code("web", "http://far.shop/")


def near(mesh):
    return mesh.code("web", "http://app.shop/")


def ends(line):
    try:
        assert line.recv(100) == b""
    except ConnectionError:
        pass


def test_who_calls_is_known_across_meshes(two):
    for mesh, other in [two, two[::-1]]:
        seen = mesh.says("web", "http://far.shop/who")
        proof = seen["headers"]["x-forwarded-client-cert"]
        assert f"URI=spiffe://{mesh.domain}/ns/shop/sa/web" in proof and f"By=spiffe://{other.domain}/ns/shop/sa/app" in proof, proof
        assert f"URI=spiffe://{mesh.domain}/ns/shop/sa/web" in mesh.says("web", "http://app.shop/who")["headers"]["x-forwarded-client-cert"]


def test_policies_tell_the_trust_domains_apart(two):
    a, b = two

    def allow(source):
        b.write("policy", resource("AccessPolicy", "some", {"action": "Allow", "rules": [{"from": [source]}]}))
        b.settle()
        return far(a), near(b)

    # Names of namespaces and accounts are those of the own mesh, unless a trust domain stands beside them.
    assert allow({"namespaces": ["shop"]}) == ("403", "200")
    assert allow({"trustDomains": [A]}) == ("200", "403")
    assert allow({"namespaces": ["shop"], "trustDomains": [A]}) == ("200", "403")
    assert allow({"namespaces": ["other"], "trustDomains": [A]}) == ("403", "403")
    assert near(a) == "200" and far(b) == "200", "the other mesh has its own policies"


@pytest.mark.parametrize("wrong", ["nobody", "another root", "the own root"])
def test_who_is_believed_no_more_is_cut_off(two, wrong):
    a, b = two
    said = {"nobody": None, "another root": pem([Authority("root").certificate]).decode()}
    # Who calls, and who is called: either may stop to believe the other.
    for mesh, other in [(b, a), (a, b)]:
        lines = {m.domain: m.upgraded("web", "far.shop") for m in two}
        at_home = [m.upgraded("web", "app.shop") for m in two]
        believes(mesh, other, said.get(wrong, roots(mesh)))
        # It is cut off in both directions: nobody is told anything by somebody unproved.
        for line in lines.values():
            ends(line)
        for m in two:
            wait_for(lambda: far(m) == "503", f"{m.domain} being refused while {mesh.domain} believes {wrong}")
            assert [far(m), far(m)] == ["503", "503"]
        # What is of one mesh only does not notice.
        for line in at_home:
            line.sendall(b"still here\n")
            assert line.recv(100) == b"still here\n"
            line.close()
        assert [near(m) for m in two] == ["200", "200"]
        believes(mesh, other, roots(other))
        for m in two:
            wait_for(lambda: far(m) == "200", f"{m.domain} calling again")
