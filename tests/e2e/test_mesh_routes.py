"""Routes of Services (GAMMA) and policies of the client's side, between captured workloads."""
import collections
import time

from conftest import by_chance, wait_for
from mesh import resource, route, service, workload
from mesh_fixtures import extra, local, shop


def names(shop, caller, count, path="/", *args):
    url = f"http://10.96.0.1{path}"
    return collections.Counter(shop.says(caller, *args, url)["name"] for _ in range(count))


def marked(text):
    """A filter by which an answer shows what rule is in effect."""
    return {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": text}]}}


def in_effect(shop, text):
    wait_for(lambda: f"x-rule: {text}" in shop.curl("web", "-i", "http://10.96.0.1/").stdout, f"the route: {text}")


def backend(name, weight=1):
    return {"name": name, "port": 80, "weight": weight}


def test_canary_by_weight_and_header(shop, extra):
    rules = [
        {"matches": [{"headers": [{"name": "x-canary", "value": "yes"}]}], "backendRefs": [backend("app-v2")]},
        {"filters": [marked("all-v1")], "backendRefs": [backend("app-v1", 1), backend("app-v2", 0)]},
    ]
    extra(route("canary", rules, "app"))
    in_effect(shop, "all-v1")
    assert names(shop, "web", 6) == {"v1": 6}
    assert names(shop, "web", 6, "/", "-H", "x-canary: yes") == {"v2": 6}
    rules[1] = {"filters": [marked("both")], "backendRefs": [backend("app-v1", 1), backend("app-v2", 1)]}
    extra(route("canary", rules, "app"))
    in_effect(shop, "both")
    share = names(shop, "web", 60)
    assert by_chance(share["v1"], 0.5, 60), share
    rules[1] = {"filters": [marked("all-v2")], "backendRefs": [backend("app-v2")]}
    extra(route("canary", rules, "app"))
    in_effect(shop, "all-v2")
    assert names(shop, "web", 6) == {"v2": 6}


def test_a_consumer_route_is_for_its_namespace_only(local):
    mesh = local()
    mesh.net.add("buyer")
    header = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-by", "value": "consumer"}]}}
    grant = {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "other"}],
             "to": [{"group": "", "kind": "Service"}]}
    mesh.write("other", "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n"
               + workload("buyer", mesh.net.address("buyer"), [], namespace="other")
               + resource("ReferenceGrant", "other", grant, api="gateway.networking.k8s.io/v1beta1")
               + route("mine", [{"filters": [header], "backendRefs": [backend("app") | {"namespace": "shop"}]}], "app", namespace="other"))
    mesh.proxy("buyer", namespace="other")
    wait_for(lambda: "x-by: consumer" in mesh.curl("buyer", "-i", "http://app.shop/").stdout, "the consumer's route being in effect")
    assert "sa/buyer" in mesh.says("buyer", "http://app.shop/")["headers"]["x-forwarded-client-cert"]
    mesh.in_sync("web", "buyer")
    others = mesh.curl("web", "-i", "http://app.shop/", check=True).stdout
    assert "200 OK" in others and "x-by" not in others


def test_timeouts_and_retries_are_the_clients(shop, extra):
    rules = [
        {"matches": [{"path": {"value": "/slow"}}], "timeouts": {"request": "300ms"}, "backendRefs": [backend("app-v1")]},
        {"matches": [{"path": {"value": "/fail"}}], "retry": {"codes": [503], "attempts": 3, "backoff": "10ms"},
         "backendRefs": [backend("app-v1")]},
        {"filters": [marked("careful")], "backendRefs": [backend("app-v1")]},
    ]
    extra(route("careful", rules, "app"))
    in_effect(shop, "careful")
    begin = time.monotonic()
    assert shop.code("web", "http://10.96.0.1/slow/40") == "504"
    assert time.monotonic() - begin < 20
    assert shop.code("web", f"http://10.96.0.1/fail/2/{time.monotonic_ns()}") == "200"
    assert shop.code("web", f"http://10.96.0.2/fail/2/{time.monotonic_ns()}") == "503", "another Service, without retries"


def test_near_endpoints_first_and_the_far_ones_when_they_fail(local):
    mesh = local(servers=("near", "far"), zones={"web": "a"})
    port = [{"name": "http", "port": 8080}]
    place = lambda name, zone: workload(name, mesh.net.address(name), port, app="app", zone=zone, region="r")
    mesh.write("shop", workload("web", mesh.net.address("web"), [], zone="a", region="r") + place("near", "a") + place("far", "b")
               + service("app", 80, 8080, {"app": "app"}, None, "http"))
    who = lambda: mesh.says("web", "http://app.shop/")["name"]
    wait_for(lambda: {who() for _ in range(8)} == {"near"}, "only the near one being called")
    mesh.kill(mesh.apps["near"])
    mesh.kill(mesh.proxies["near"])
    wait_for(lambda: {who() for _ in range(8)} == {"far"}, "the far one taking over")
    mesh.apps["near"] = mesh.peer("near", "http", mesh.net.address("near"), 8080, "near")
    mesh.proxy("near")
    wait_for(lambda: {who() for _ in range(8)} == {"near"}, "the near one being called again")
