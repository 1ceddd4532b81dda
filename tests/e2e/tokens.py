"""Issuers of JSON Web Tokens: keys, tokens, and the AuthPolicies that believe them."""
import base64
import json
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://issuer.example"


class Issuer:
    def __init__(self, kid="a", algorithm="ES256", issuer=ISSUER):
        self.kid, self.algorithm, self.issuer = kid, algorithm, issuer
        if algorithm.startswith("ES"):
            self.key = ec.generate_private_key(ec.SECP256R1() if algorithm == "ES256" else ec.SECP384R1())
        elif algorithm == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
        else:
            self.key = rsa.generate_private_key(65537, 2048)

    def public(self):
        """The JWK."""
        name = "RS256" if self.algorithm.startswith("PS") else self.algorithm
        of = jwt.get_algorithm_by_name(name)
        return json.loads(of.to_jwk(self.key.public_key())) | {"kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def token(self, sub="anna", lasts=300, header={}, **claims):
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": "shop", "sub": sub, "iat": now, "exp": now + lasts} | claims
        return jwt.encode({k: v for k, v in claims.items() if v is not None}, self.key, self.algorithm, headers={"kid": self.kid} | header)


def keys(*issuers):
    """The text of a JWK set."""
    return json.dumps({"keys": [issuer.public() for issuer in issuers]})


def unsigned(header, claims, signature=b""):
    """A token of these parts, whatever they are."""
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    return ".".join([part(json.dumps(header).encode()), part(json.dumps(claims).encode()), part(signature)])


def secret(name, text, namespace="default"):
    meta = {"name": name, "namespace": namespace}
    return "\n---\n" + json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"jwks.json": text}}) + "\n"


def auth_policy(name, target, jwks, namespace="default", optional=False, **provider):
    provider = {"name": "main", "issuer": ISSUER, "audiences": ["shop"], "jwks": jwks} | provider
    spec = {"jwt": {"optional": optional, "providers": [provider]}} | ({"targetRefs": [target]} if target else {})
    meta = {"name": name, "namespace": namespace}
    return "\n---\n" + json.dumps({"apiVersion": "selvedge.dev/v1alpha1", "kind": "AuthPolicy", "metadata": meta, "spec": spec}) + "\n"
