"""The meshes that tests share."""
import contextlib

import pytest
from conftest import BIN, wait_for
from mesh import DOMAIN, Loopback, Mesh, Spaces, service, why_not, workload


@contextlib.contextmanager
def spaces(folder, *names):
    """A mesh between network namespaces, which the mesh ends with; skipped where none can be made."""
    if why := why_not():
        pytest.skip(why)
    net, mesh = Spaces(), None
    try:
        for name in names:
            net.add(name)
        mesh = Mesh(folder, net)
        yield mesh
    finally:
        if mesh:
            mesh.stop()
        else:
            net.close()


def capture(mesh, name, *args):
    mesh.run(name, BIN, "capture", "apply", *args)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Network namespaces with captured connections. `web` and `guest` call; `apps` and `apps2` serve; `outside` is not meshed.

    Services: `app` 10.96.0.1 (both), `app-v1`, `app-v2` 10.96.0.2, .3, `files` .4, `cache` .5, `mail` .6, `grpc` .7, `db` .8.
    """
    with spaces(tmp_path_factory.mktemp("shop"), "web", "guest", "apps", "apps2", "outside") as mesh:
        mesh.write("shop", resources(mesh.net))
        for name in ["web", "guest", "apps", "apps2"]:
            # `web` looks names up, at the address of nobody unless they are of the mesh.
            dns = name == "web"
            capture(mesh, name, *(["--dns"] if dns else []))
            mesh.proxy(name, *(["--dns", "--dns-upstream", "10.99.0.1:53"] if dns else []), wait=False)
        mesh.peer("apps", "http", "::", 8080, "v1", label="v1")
        mesh.peer("apps2", "http", "::", 8080, "v2", label="v2")
        mesh.peer("apps", "smtp", "::", 2525, label="smtp")
        mesh.peer("apps", "grpc", "0.0.0.0", 50051, label="grpc")
        for name in ["web", "guest", "apps", "apps2"]:
            wait_for(lambda: mesh.admin_get(name, "/ready"), f"{name} being ready; {mesh.folder}/{name}.log", 90)
        mesh.in_sync("web", "guest", "apps", "apps2")
        # What is used is asked for then, and a connection does not wait for the answer for ever.
        for name in ["web", "guest"]:
            for number in [2, 3, 1]:
                wait_for(lambda: mesh.code(name, f"http://10.96.0.{number}/") == "200", f"the first request of {name} to it")
        yield mesh


def resources(net, tunnel="HBONE", **more):
    """`tunnel`: how `apps2` is reached. `more`: what else the Workload `apps` says."""
    port = lambda name, number, **more: {"name": name, "port": number, **more}
    address = lambda name: [net.address(name), net.address(name).replace("10.99.0.", "fd99::")]
    apps = [port("http", 8080), port("files", 8000, appProtocol="http"), port("cache", 6379), port("mail", 2525),
            port("grpc", 50051), port("db", 5432)]
    return "".join([
        workload("web", address("web"), []),
        workload("guest", address("guest"), []),
        workload("apps", address("apps"), apps, app="app", **more),
        workload("apps2", address("apps2"), [port("http", 8080)], app="app", tunnel={"protocol": tunnel}),
        service("app", 80, 8080, {"app": "app"}, "10.96.0.1", "http"),
        service("app-v1", 80, 8080, {"name": "apps"}, "10.96.0.2", "http", ["10.96.0.2", "fd96::2"]),
        service("app-v2", 80, 8080, {"name": "apps2"}, "10.96.0.3", "http"),
        service("files", 80, 8000, {"name": "apps"}, "10.96.0.4", "http"),
        service("cache", 6379, 6379, {"name": "apps"}, "10.96.0.5"),
        service("mail", 25, 2525, {"name": "apps"}, "10.96.0.6", ips=["10.96.0.6", "fd96::6"]),
        service("grpc", 80, 50051, {"name": "apps"}, "10.96.0.7", "grpc"),
        service("db", 5432, 5432, {"name": "apps"}, "10.96.0.8"),
    ])


@pytest.fixture
def extra(shop):
    """Resources of one test, gone after it."""
    names = []

    def write(text, name="extra"):
        names.append(name)
        shop.write(name, text)

    yield write
    for name in names:
        shop.remove(name)
    shop.settle()


def start_local(folder, *control_args, callers=("web",), servers=("app",), ttl="24h", domain=DOMAIN, zones={}, **kwargs):
    """A mesh on loopback: `web` calls, `app`s have an HTTP server each on port 8080."""
    net = Loopback()
    for name in [*callers, *servers]:
        net.add(name)
    mesh = Mesh(folder, net, *control_args, ttl=ttl, domain=domain)
    try:
        text = "".join(workload(name, net.address(name), []) for name in callers)
        text += "".join(workload(name, net.address(name), [{"name": "http", "port": 8080}], app="app") for name in servers)
        mesh.write("shop", text + service("app", 80, 8080, {"app": "app"}, None, "http"))
        mesh.apps = {name: mesh.peer(name, "http", net.address(name), 8080, name) for name in servers}
        for name in [*callers, *servers]:
            mesh.proxy(name, *(["--zone", zones[name]] if name in zones else []), wait=False, **kwargs)
        for name in [*callers, *servers]:
            wait_for(lambda: mesh.admin_get(name, "/ready"), f"{name} being ready; {mesh.folder}/{name}.log", 90)
        for name in callers:
            wait_for(lambda: mesh.code(name, "http://app.shop/") == "200", "the first request")
    except BaseException:
        mesh.stop()
        raise
    return mesh


@pytest.fixture
def local(tmp_path):
    """Makes meshes on loopback, as `start_local` does: `local(ttl=..)`."""
    made = []

    def make(*args, **kwargs):
        folder = tmp_path / f"mesh{len(made)}"
        folder.mkdir()
        made.append(start_local(folder, *args, **kwargs))
        return made[-1]

    yield make
    for mesh in made:
        mesh.stop()
