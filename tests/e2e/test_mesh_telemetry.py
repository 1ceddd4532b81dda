"""What is told about requests between workloads: one trace over both proxies, lines of both, and what tunnels count."""
from conftest import wait_for
from mesh import resource
from mesh_fixtures import local
from test_telemetry import TRACE, Collector

CALLER = "b7ad6b7169203331"


def fields(message):
    """Numbers and values of a protobuf message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        elif kind == 2:
            length = varint()
            yield key >> 3, message[at:at + length]
            at += length
        else:
            length = {1: 8, 5: 4}[kind]
            yield key >> 3, message[at:at + length]
            at += length


def inner(message, *path):
    """All messages at a path of field numbers."""
    if not path:
        return [message]
    return [found for number, value in fields(message) if number == path[0] for found in inner(value, *path[1:])]


def spans(collector, trace):
    """The spans of a trace: id, id of the parent, attributes. An export whose answer was late comes again, with the same ids."""
    found = {}
    for request in list(collector.got["spans"]):
        for span in inner(request, 1, 2, 2):
            entries = dict((number, value) for number, value in fields(span) if number in (1, 2, 4))
            if entries[1].hex() == trace:
                attributes = {}
                for pair in inner(span, 9):
                    entry = dict(fields(pair))
                    attributes[entry[1].decode()] = next(iter(fields(entry[2])))[1]
                found[entries[2]] = (entries[2].hex(), entries.get(4, b"").hex(), attributes)
    return list(found.values())


def telemetry(collector, folder):
    spec = {"targetRefs": [{"kind": "Namespace", "name": "shop"}], "telemetry": {
        "tracing": {"sampling": 0, "otlp": f"http://127.0.0.1:{collector.port}"},
        "accessLog": {"path": str(folder / "access.log")}}}
    return resource("TrafficPolicy", "telemetry", spec)


def test_one_trace_over_both_proxies(local, tmp_path):
    collector, mesh = Collector(), local()
    mesh.write("telemetry", telemetry(collector, tmp_path))
    head = ["-H", f"traceparent: 00-{TRACE}-{CALLER}-01", "-H", "tracestate: shop=1"]

    def seen():
        headers = mesh.says("web", *head, "http://app.shop/traced")["headers"]
        assert headers["tracestate"] == "shop=1"
        return headers["traceparent"].split("-") if headers["traceparent"].split("-")[2] != CALLER else None

    wait_for(seen, "proxies taking part in the trace")
    # The other proxy knows the policy too, which the control plane has sent to both.
    mesh.in_sync("web", "app")
    trace = TRACE[::-1]
    head[1] = f"traceparent: 00-{trace}-{CALLER}-01"
    _, id, parent, flags = seen()
    assert (id, flags) == (trace, "01")
    # Each proxy has a span of what came to it, and one of what it sent on.
    found = wait_for(lambda: (s := spans(collector, trace)) and len(s) >= 4 and s, "the spans of both proxies")
    assert len(found) == 4, found
    children = {span[1]: span[0] for span in found}
    chain = [CALLER]
    while chain[-1] in children:
        chain.append(children[chain[-1]])
    assert len(chain) == 5, f"each is the child of the one before: {found}"
    assert parent == chain[-1], "the application is told of the last of them"
    # And the access log has lines of both.
    log = tmp_path / "access.log"
    wait_for(lambda: sum(trace in line for line in log.read_text().splitlines()) >= 2, "lines of both")
    # Nobody asked for it, and nothing is sampled: what is asked for afterwards comes, and it does not.
    assert mesh.code("web", "http://app.shop/untraced") == "200"
    later = "1" * 16 + TRACE[:16]
    head[1] = f"traceparent: 00-{later}-{CALLER}-01"
    seen()
    wait_for(lambda: len(spans(collector, later)) >= 4, "the spans of what came later")
    assert b"/untraced" not in collector.all("spans")


def test_tunnels_are_counted(local):
    mesh = local()
    get = lambda name, *parts: mesh.metric("web", f"selvedge_mesh_tunnel_{name}", *parts)
    assert get("connections_active") >= 1
    assert get("connections_total", 'outcome="opened"') >= 1
    assert get("streams_total", 'outcome="opened"') >= 1
    before = get("streams_active")
    load = mesh.load("web", "app.shop")
    load.more(20)
    wait_for(lambda: get("streams_active") >= max(before, 1), "streams in use")
    load.none_failed()
    failed = lambda: get("connections_total", 'outcome="connect_failure"')
    at = failed()
    mesh.kill(mesh.proxies["app"])
    wait_for(lambda: mesh.code("web", "http://app.shop/") != "200" and failed() > at, "the failure being counted")
    wait_for(lambda: get("connections_active") == 0, "no connection being left")
    wait_for(lambda: get("streams_total", 'outcome="failed"') >= 1, "a stream that failed")
