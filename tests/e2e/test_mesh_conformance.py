"""What the mesh tests of the Gateway API's conformance suite ask (docs/conformance.md), asked between captured workloads with
the suite's own routes: `web` calls Service `echo`, of which `echo-v1` and `echo-v2` are the versions."""
import collections
import json
import sys

import pytest
from conftest import by_chance, wait_for
from mesh import PEER, resource
from mesh_fixtures import extra, shop

ADDRESSES = {"echo": "10.96.1.1", "echo-v1": "10.96.1.2", "echo-v2": "10.96.1.3"}
SELECTORS = {"echo": {"app": "app"}, "echo-v1": {"name": "apps"}, "echo-v2": {"name": "apps2"}}


def echo_services():
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"},
             {"name": "http-alt", "port": 8080, "appProtocol": "http"}, {"name": "grpc", "port": 7070}]
    return "".join(resource("Service", name, {"selector": SELECTORS[name], "clusterIP": ip, "ports": ports}, api="v1")
                   for name, ip in ADDRESSES.items())


@pytest.fixture(scope="module")
def echo(shop):
    shop.write("echo", echo_services())
    for name in ADDRESSES:
        wait_for(lambda: shop.code("web", f"http://{name}/") == "200", f"{name} answering")
    yield shop
    shop.remove("echo")
    shop.settle()


def serve(echo, extra, rules, service="echo", kind="HTTPRoute", **parent):
    """Puts a route in effect. `parent`: more of the parentRef."""
    parents = [{"group": "", "kind": "Service", "name": service, **parent}]
    extra(resource(kind, f"of-{service}", {"parentRefs": parents, "rules": rules}, api="gateway.networking.k8s.io/v1"), f"of-{service}")
    echo.settle()


def paths(**filters):
    """Rules by path: the word with `-` for `_`, and what is done there."""
    return [{"matches": [{"path": {"value": f"/{word.replace('_', '-')}"}}], **rest} for word, rest in filters.items()]


def to(name, **more):
    return [{"name": name, "port": 8080, **more}]


def redirect(**how):
    return {"filters": [{"type": "RequestRedirect", "requestRedirect": how}]}


def prefix(path):
    return {"type": "ReplacePrefixMatch", "replacePrefixMatch": path}


def full(path):
    return {"type": "ReplaceFullPath", "replaceFullPath": path}


def change(add={}, remove=(), **values):
    """A filter that sets, adds and removes headers of the request."""
    pairs = lambda headers: [{"name": name, "value": value} for name, value in headers.items()]
    return {"type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": pairs(values.get("set", {})), "add": pairs(add), "remove": list(remove)}}


def sent_away(echo, path, host="echo"):
    """Status, and where to."""
    return tuple(echo.curl("web", "-o", "/dev/null", "-w", "%{http_code} %header{location}", f"http://{host}{path}").stdout.split())


def seen(echo, path, host="echo", **headers):
    """What the server that answers got. `_` in a header's name is `-`."""
    words = [word for name, value in headers.items() for word in ("-H", f"{name.replace('_', '-')}: {value}")]
    return echo.says("web", *words, f"http://{host}{path}")


@pytest.mark.parametrize("status", [303, 307, 308])
def test_redirects_by_status(echo, extra, status):
    serve(echo, extra, paths(redirect=redirect(statusCode=status)), port=80)
    assert sent_away(echo, "/redirect") == (str(status), "http://echo/redirect")


# For each path where it leads, and how.
REDIRECTS = {
    "host_and_status": (
        paths(hostname_redirect=redirect(hostname="example.org"), host_and_status=redirect(statusCode=301, hostname="example.org")),
        {"/hostname-redirect": ("302", "http://example.org/hostname-redirect"),
         "/host-and-status": ("301", "http://example.org/host-and-status")},
    ),
    "path": (
        paths(original_prefix=redirect(path=prefix("/replacement-prefix")), full=redirect(path=full("/full-path-replacement")),
              path_and_host=redirect(hostname="example.org", path=prefix("/replacement-prefix")),
              path_and_status=redirect(path=prefix("/replacement-prefix"), statusCode=301),
              full_path_and_host=redirect(hostname="example.org", path=full("/replacement-full")),
              full_path_and_status=redirect(path=full("/replacement-full"), statusCode=301)),
        {"/original-prefix/lemon": ("302", "http://echo/replacement-prefix/lemon"),
         "/full/path/original": ("302", "http://echo/full-path-replacement"),
         "/path-and-host": ("302", "http://example.org/replacement-prefix"),
         "/path-and-status": ("301", "http://echo/replacement-prefix"),
         "/full-path-and-host": ("302", "http://example.org/replacement-full"),
         "/full-path-and-status": ("301", "http://echo/replacement-full")},
    ),
    "port": (
        paths(port=redirect(port=8083), port_and_host=redirect(hostname="example.org", port=8083),
              port_and_status=redirect(port=8083, statusCode=301),
              port_and_host_and_status=redirect(port=8083, hostname="example.org", statusCode=302)),
        {"/port": ("302", "http://echo:8083/port"), "/port-and-host": ("302", "http://example.org:8083/port-and-host"),
         "/port-and-status": ("301", "http://echo:8083/port-and-status"),
         "/port-and-host-and-status": ("302", "http://example.org:8083/port-and-host-and-status")},
    ),
    "scheme": (
        paths(scheme=redirect(scheme="https"), scheme_and_host=redirect(hostname="example.org", scheme="https"),
              scheme_and_status=redirect(scheme="https", statusCode=301),
              scheme_and_host_and_status=redirect(scheme="https", statusCode=302, hostname="example.org")),
        {"/scheme": ("302", "https://echo/scheme"), "/scheme-and-host": ("302", "https://example.org/scheme-and-host"),
         "/scheme-and-status": ("301", "https://echo/scheme-and-status"),
         "/scheme-and-host-and-status": ("302", "https://example.org/scheme-and-host-and-status")},
    ),
}


@pytest.mark.parametrize("what", REDIRECTS)
def test_redirects(echo, extra, what):
    rules, wanted = REDIRECTS[what]
    serve(echo, extra, rules, port=80)
    assert {path: sent_away(echo, path) for path in wanted} == wanted


CHANGES = {
    "set": change(set={"X-Header-Set": "set-overwrites-values"}),
    "add": change(add={"X-Header-Add": "add-appends-values"}),
    "remove": change(remove=["X-Header-Remove"]),
    "multiple": change(set={"X-Header-Set-1": "header-set-1", "X-Header-Set-2": "header-set-2"}, remove=["X-Header-Remove-1", "X-Header-Remove-2"],
                       add={"X-Header-Add-1": "header-add-1", "X-Header-Add-2": "header-add-2", "X-Header-Add-3": "header-add-3"}),
    "case_insensitivity": change(set={"X-Header-Set": "header-set"}, add={"X-Header-Add": "header-add"}, remove=["X-Header-Remove"]),
}
# Path, headers of the request, and those that arrive; None: it does not.
CHANGED = [
    ("/set", {"Some_Other_Header": "val"}, {"some-other-header": "val", "x-header-set": "set-overwrites-values"}),
    ("/set", {"X_Header_Set": "some-other-value"}, {"x-header-set": "set-overwrites-values"}),
    ("/add", {"Some_Other_Header": "val"}, {"some-other-header": "val", "x-header-add": "add-appends-values"}),
    ("/add", {"X_Header_Add": "some-other-value"}, {"x-header-add": "some-other-value,add-appends-values"}),
    ("/remove", {"X_Header_Remove": "val"}, {"x-header-remove": None}),
    ("/multiple", {"X_Header_Set_2": "set-val-2", "X_Header_Add_2": "add-val-2", "X_Header_Remove_2": "remove-val-2", "Another_Header": "val"},
     {"x-header-set-1": "header-set-1", "x-header-set-2": "header-set-2", "x-header-add-1": "header-add-1",
      "x-header-add-2": "add-val-2,header-add-2", "x-header-add-3": "header-add-3", "another-header": "val",
      "x-header-remove-1": None, "x-header-remove-2": None}),
    ("/case-insensitivity", {"x_header_set": "val-set", "x_header_add": "val-add", "x_header_remove": "val", "Another_Header": "val"},
     {"x-header-set": "header-set", "x-header-add": "val-add,header-add", "x-header-remove": None, "another-header": "val"}),
]


@pytest.mark.parametrize("whose", ["rule", "backend"])
def test_request_headers_are_changed(echo, extra, whose):
    done = lambda how: {"filters": [how], "backendRefs": to("echo-v1")} if whose == "rule" else {"backendRefs": to("echo-v1", filters=[how])}
    serve(echo, extra, paths(**{word: done(how) for word, how in CHANGES.items()}), port=80)
    for path, sent, arrived in CHANGED:
        got = seen(echo, path, **sent)
        assert got["name"] == "v1" and {name: got["headers"].get(name) for name in arrived} == arrived, (path, sent)


def test_paths_are_rewritten(echo, extra):
    headers = change(set={"X-Header-Set": "set-overwrites-values"}, add={"X-Header-Add": "header-val-1", "X-Header-Add-Append": "header-val-2"},
                     remove=["X-Header-Remove"])
    rewrite = lambda path, *more: {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": path}}, *more], "backendRefs": to("echo-v1")}
    serve(echo, extra, paths(**{
        "prefix/one": rewrite(prefix("/one")), "strip-prefix": rewrite(prefix("/")), "full/one": rewrite(full("/one")),
        "full/rewrite-path-and-modify-headers": rewrite(full("/test"), headers),
        "prefix/rewrite-path-and-modify-headers": rewrite(prefix("/prefix"), headers)}), port=80)
    for path, arrived in {"/prefix/one/two": "/one/two", "/strip-prefix/three": "/three", "/strip-prefix": "/", "/full/one/two": "/one"}.items():
        got = seen(echo, path)
        assert (got["name"], got["path"]) == ("v1", arrived), path
    for path, arrived in {"/full/rewrite-path-and-modify-headers/test": "/test", "/prefix/rewrite-path-and-modify-headers/one": "/prefix/one"}.items():
        got = seen(echo, path, X_Header_Remove="val", X_Header_Add_Append="append-val-1", X_Header_Set="set-val")
        names = ["x-header-add", "x-header-add-append", "x-header-set", "x-header-remove"]
        assert got["path"] == arrived, path
        assert [got["headers"].get(name) for name in names] == ["header-val-1", "append-val-1,header-val-2", "set-overwrites-values", None], path


def test_named_rules(echo, extra):
    rules = paths(named={"name": "named-rule", "backendRefs": to("echo-v1")}, unnamed={"backendRefs": to("echo-v2")})
    serve(echo, extra, rules, port=80)
    assert [(got["name"], got["path"]) for got in (seen(echo, "/named"), seen(echo, "/unnamed"))] == [("v1", "/named"), ("v2", "/unnamed")]


def matching(animal=None, path=None, version=None):
    match = {"path": {"value": path or "/"}}
    if animal:
        match["queryParams"] = [{"name": "animal", "value": animal}]
    if version:
        match["headers"] = [{"name": "version", "value": version}]
    return match


def test_query_parameters_are_matched(echo, extra):
    rule = lambda name, *matches: {"matches": list(matches), "backendRefs": to(name)}
    serve(echo, extra, [
        rule("echo-v1", matching("whale")), rule("echo-v2", matching("dolphin")), rule("echo-v1", matching("whale", "/path1")),
        rule("echo-v2", matching("whale", version="one")),
        rule("echo-v1", matching("shark", "/path3"), matching("kraken", "/path4", "three")),
        rule("echo-v1", matching(path="/path5")), rule("echo-v2", matching("hydra"))], port=80)
    for path, version, who in [
            ("/?animal=whale", None, "v1"), ("/?animal=dolphin", None, "v2"), ("/?animal=whale&otherparam=irrelevant", None, "v1"),
            ("/?animal=dolphin&color=yellow", None, "v2"), ("/path1?animal=whale", None, "v1"), ("/?animal=whale", "one", "v2"),
            ("/path3?animal=shark", None, "v1"), ("/path4?animal=kraken", "three", "v1"), ("/path5?animal=hydra", None, "v1")]:
        assert seen(echo, path, **({"version": version} if version else {}))["name"] == who, (path, version)
    for path in ["/?color=blue", "/?animal=dog", "/?animal=whaledolphin", "/", "/?animal=shark", "/path4?animal=kraken"]:
        assert echo.code("web", f"http://echo{path}") == "404", path


def test_paths_and_headers_are_matched(echo, extra):
    rule = lambda name, path, version: {
        "matches": [{"path": {"value": path}}, {"headers": [{"name": "version", "value": version}]}], "backendRefs": to(name)}
    serve(echo, extra, [rule("echo-v1", "/", "one"), rule("echo-v2", "/v2", "two")], port=80)
    for path, version, who in [("/", None, "v1"), ("/example", None, "v1"), ("/", "one", "v1"), ("/v2", None, "v2"), ("/v2/example", None, "v2"),
                               ("/", "two", "v2"), ("/v2/", None, "v2"), ("/v2example", None, "v1"), ("/foo/v2/example", None, "v1")]:
        assert seen(echo, path, **({"version": version} if version else {}))["name"] == who, (path, version)


def test_a_simple_route_of_the_same_namespace(echo, extra):
    names = lambda: {seen(echo, "/")["name"] for _ in range(20)}
    assert names() == {"v1", "v2"}, "without the route"
    serve(echo, extra, [{"backendRefs": to("echo-v1")}], port=80)
    assert names() == {"v1"}


def test_http_weights(echo, extra):
    serve(echo, extra, [{"backendRefs": to("echo-v1", weight=70) + to("echo-v2", weight=30)}], port=80)
    count = collections.Counter(seen(echo, "/")["name"] for _ in range(100))
    assert by_chance(count["v1"], 0.7, 100) and count["v2"] == 100 - count["v1"], count


def test_grpc_weights(echo, extra):
    for name, version in (("apps", "v1"), ("apps2", "v2")):
        echo.peer(name, "grpc", "0.0.0.0", 7070, version, label=f"grpc-{version}")
    ask = lambda count: json.loads(echo.run("web", sys.executable, PEER, "call-grpc", "echo:7070", count).stdout)
    # One connection of the client, and each call on its own.
    parts = [{"name": name, "port": 7070, "weight": weight} for name, weight in (("echo-v1", 70), ("echo-v2", 30))]
    serve(echo, extra, [{"backendRefs": parts}], kind="GRPCRoute", port=7070)
    count = collections.Counter(ask(400))
    assert by_chance(count["v1"], 0.7, 400) and count["v2"] == 400 - count["v1"], count
    serve(echo, extra, [{"backendRefs": parts[1:]}], kind="GRPCRoute", port=7070)
    assert set(ask(40)) == {"v2"}


def test_routes_of_one_port_and_of_all(echo, extra):
    marked = lambda text: {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "X-Header-Set", "value": text}]}}
    backend = lambda name: [{"name": name, "port": 80}]
    serve(echo, extra, [{"filters": [marked("v1")], "backendRefs": backend("echo-v1")}], "echo-v1", port=80)
    serve(echo, extra, [{"filters": [marked("v2")], "backendRefs": backend("echo-v2")}], "echo-v2")
    mark = lambda host: echo.curl("web", "-o", "/dev/null", "-w", "%{http_code} %header{x-header-set}", f"http://{host}/").stdout.split()
    assert mark("echo-v1") == ["200", "v1"] and mark("echo-v1:8080") == ["200"]
    assert mark("echo-v2") == ["200", "v2"] and mark("echo-v2:8080") == ["200", "v2"]
    assert seen(echo, "/", "echo-v1:8080")["name"] == "v1" and seen(echo, "/", "echo-v2:8080")["name"] == "v2"
