"""Tokens in front of workloads: the proxy beside one verifies them, by keys that the others do not get."""
from conftest import wait_for
from mesh import DOMAIN, resource
from mesh_fixtures import extra, shop
from tokens import Issuer, auth_policy, keys, secret

WEB = f"spiffe://{DOMAIN}/ns/shop/sa/web"


def test_claims_and_identities_decide_together(shop, extra):
    issuer, other = Issuer("a"), Issuer("b", "EdDSA")
    told = [{"header": "x-user", "claim": "sub"}]
    target = {"kind": "Workload", "name": "apps"}
    users = auth_policy("users", target, {"secretRef": {"name": "issuer"}}, namespace="shop", claimToHeaders=told)
    allow = resource("AccessPolicy", "users", {"targetRefs": [target], "rules": [
        {"name": "anna", "from": [{"identities": [WEB], "claims": [{"name": "sub", "values": ["anna"]}]}]}]})
    code = lambda caller, token=None: shop.code(caller, *(["-H", f"authorization: Bearer {token}"] if token else []), "http://10.96.0.2/")
    assert code("web") == "200"
    extra(users + secret("issuer", keys(issuer), "shop") + allow)
    wait_for(lambda: code("web") == "401", "the policy being in effect")
    assert code("web", issuer.token()) == "200"
    assert code("web", issuer.token(sub="bert")) == "403"
    assert code("guest", issuer.token()) == "403", "the token alone is not enough"
    assert code("web", other.token()) == "401"
    wait_for(lambda: shop.metric("apps", "selvedge_auth_refused_total", 'reason="missing"') >= 1, "the refusal being counted")
    # Its own proxy has the keys, those of its clients do not.
    for name, has in (("apps", True), ("web", False), ("guest", False)):
        config = shop.admin_get(name, "/config")
        assert ("AuthPolicy" in config, '"issuer"' in config) == (has, has), name
    extra(users + secret("issuer", keys(other), "shop") + allow)
    wait_for(lambda: code("web", other.token()) == "200", "the other keys")
    assert code("web", issuer.token()) == "401"
