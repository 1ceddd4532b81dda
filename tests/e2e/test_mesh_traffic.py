"""TrafficPolicy as the caller's proxy honours it: of a Service that a workload calls."""
import time
from concurrent.futures import ThreadPoolExecutor

from conftest import wait_for
from mesh import resource, route, service
from mesh_fixtures import local

URL = "http://app.shop"


def policy(mesh, **spec):
    """The policy for Service `app`."""
    mesh.write("policy", resource("TrafficPolicy", "app", {"targetRefs": [{"kind": "Service", "name": "app"}], **spec}))
    mesh.settle()


def test_limits_fault_and_retry(local):
    mesh = local()
    # One request at a time, and nobody waits: of several slow ones some are refused at once, with the flag for it.
    policy(mesh, connections={"maxRequests": 1})

    def together():
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda _: mesh.code("web", f"{URL}/slow"), range(4)))

    codes = wait_for(lambda: (codes := together()) and "503" in codes and codes, "the limit")
    assert "200" in codes, codes
    policy(mesh, fault={"abort": {"status": 418, "percent": 100}})
    wait_for(lambda: mesh.code("web", f"{URL}/") == "418", "the fault")
    policy(mesh, fault={"delay": {"fixed": "1s", "percent": 100}})
    # Several in a row: one that is late may be late by itself.
    late = lambda: (answer := mesh.curl("web", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", f"{URL}/").stdout.split()) \
        and answer[0] == "200" and float(answer[1]) >= 1
    wait_for(lambda: all(late() for _ in range(4)), "the delay")
    # Without a policy a 503 stays; with one it is tried again.
    mesh.remove("policy")
    wait_for(lambda: mesh.code("web", f"{URL}/fail/1/a{mesh.code('web', URL + '/')}") == "503", "no retries")
    policy(mesh, retry={"attempts": 2, "retryOn": ["gateway-error"], "backoff": {"base": "1ms", "max": "1ms"}})
    numbers = iter(range(1000))
    wait_for(lambda: mesh.code("web", f"{URL}/fail/2/b{next(numbers)}") == "200", "two retries")
    assert mesh.code("web", f"{URL}/fail/3/c") == "503", "no third one"
    assert mesh.code("web", "-X", "POST", f"{URL}/fail/1/d") == "503", "POST may have been done"


def test_a_retry_budget_ends_retries(local):
    mesh = local()
    budget = {"percent": 0, "minRetriesPerSecond": 1, "minConcurrency": 0}
    policy(mesh, retry={"attempts": 3, "retryOn": ["gateway-error"], "budget": budget, "backoff": {"base": "1ms", "max": "1ms"}})
    wait_for(lambda: mesh.code("web", f"{URL}/fail/1/first") == "200", "retries")

    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        good = sum(code == "200" for code in pool.map(lambda n: mesh.code("web", f"{URL}/fail/1/n{n}"), range(80)))
    # Ten in ten seconds.
    assert good <= 10 * (2 + (time.monotonic() - begun) // 10), f"{good} of 80 were retried, though one a second may be"


def test_an_outlier_is_ejected(local):
    mesh = local(servers=("app", "app2"))
    policy(mesh, outlierDetection={"consecutive5xx": 3, "baseEjectionTime": "60s", "maxEjectionPercent": 50},
           loadBalancing={"algorithm": "RoundRobin"})
    # Each server fails on its own count: only one is allowed to be out.
    for n in range(40):
        mesh.code("web", f"{URL}/fail/1000/out")
    wait_for(lambda: mesh.metric("web", "selvedge_upstream_ejections_total") >= 1, "an ejection")
    # Whoever picks endpoints is told of it a moment later.
    wait_for(lambda: len({mesh.says("web", f"{URL}/")["name"] for _ in range(20)}) == 1, "one of them being called")


def test_a_hash_picks_the_same_endpoint(local):
    mesh = local(servers=("app", "app2"))
    keys = [{"type": "Header", "name": "x-user"}]
    policy(mesh, loadBalancing={"algorithm": "Maglev", "hashKeys": keys})

    def names(user):
        return {mesh.says("web", "-H", f"x-user: {user}", f"{URL}/")["name"] for _ in range(6)}

    wait_for(lambda: all(len(names(f"user{n}")) == 1 for n in range(4)), "one endpoint for each user")
    who = lambda user: mesh.says("web", "-H", f"x-user: {user}", f"{URL}/")["name"]
    assert len({who(f"user{n}") for n in range(40)}) == 2, "different users, different endpoints"


def test_a_mirror_gets_copies(local):
    mesh = local(servers=("app", "app2"))
    one = lambda name: service(f"only-{name}", 80, 8080, {"name": name}, None, "http")
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "only-app2", "port": 80}}}
    marked = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": "mirror"}]}}
    rules = [{"filters": [mirror, marked], "backendRefs": [{"name": "only-app", "port": 80}]}]
    mesh.write("mirror", one("app") + one("app2") + route("mirror", rules, "app"))
    arrived = lambda: mesh.metric("app2", "selvedge_http_requests_total", 'listener="shop/app2/inbound"')
    wait_for(lambda: "x-rule: mirror" in mesh.curl("web", "-i", f"{URL}/").stdout, "the route")
    before = arrived()
    for _ in range(5):
        assert mesh.says("web", f"{URL}/")["name"] == "app"
    wait_for(lambda: arrived() >= before + 5, "the copies")
