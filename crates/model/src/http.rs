//! HTTPRoute of the Gateway API v1.6, and what GRPCRoute shares with it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::gateway::DefaultScope;
use crate::meta::ObjectMeta;
use crate::refs::{BackendObjectReference, BackendRef, LocalObjectReference, ParentReference};

/// Routes HTTP requests from listeners to backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct HttpRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Hostnames, parents and rules.
    pub spec: HttpRouteSpec,
}

/// Hostnames, parents and rules of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// Gateways, ListenerSets or Services to attach to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Whether the route also attaches to default Gateways (experimental).
    pub use_default_gateways: Option<DefaultScope>,
    /// Hostnames to match, maybe with a leading `*.` label; without any, those of the listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub hostnames: Vec<String>,
    /// The rules.
    #[serde(default = "default_rules")]
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<HttpRouteRule>,
}

/// What matches, and what then happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Name, unique in the route, for policies to target.
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// The rule matches when any of these does.
    #[serde(default = "default_matches")]
    #[schemars(length(max = 64))]
    pub matches: Vec<HttpRouteMatch>,
    /// Applied in this order to requests, in reverse to responses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpRouteFilter>,
    /// Backends and their weights; without any, requests are answered with 500 unless a filter answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<HttpBackendRef>,
    /// Limits of time.
    pub timeouts: Option<HttpRouteTimeouts>,
    /// When failed requests are sent again (experimental).
    pub retry: Option<HttpRouteRetry>,
    /// Keeps a client at one backend endpoint (experimental).
    pub session_persistence: Option<SessionPersistence>,
}

impl Default for HttpRouteRule {
    fn default() -> Self {
        HttpRouteRule {
            name: None,
            matches: default_matches(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
            retry: None,
            session_persistence: None,
        }
    }
}

/// A request matches when path, headers, query parameters and method all do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteMatch {
    /// The path.
    #[serde(default)]
    pub path: HttpPathMatch,
    /// Headers that must all match; of several with one name, only the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters that must all match; of several with one name, only the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<HttpQueryParamMatch>,
    /// The method.
    pub method: Option<HttpMethod>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpPathMatch {
    /// How the path is compared.
    #[serde(rename = "type", default)]
    pub match_type: PathMatchType,
    /// The path, prefix or regular expression.
    #[serde(default = "slash")]
    #[schemars(length(max = 1024))]
    pub value: String,
}

impl Default for HttpPathMatch {
    fn default() -> Self {
        HttpPathMatch { match_type: PathMatchType::PathPrefix, value: slash() }
    }
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The whole path, with case.
    Exact,
    /// Whole path elements from the start: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// A regular expression that the whole path must match; linear-time syntax, without look-around and back-references.
    RegularExpression,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub match_type: ValueMatchType,
    /// Header name, without regard to case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Value or regular expression.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpQueryParamMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub match_type: ValueMatchType,
    /// Parameter name, with case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Value or regular expression.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How a header or query parameter is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// The whole value, with case.
    #[default]
    Exact,
    /// A regular expression that the whole value must match.
    RegularExpression,
}

/// A method that routes can match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE.
    Trace,
    /// PATCH.
    Patch,
}

impl HttpMethod {
    /// All methods.
    pub const ALL: [HttpMethod; 9] = [
        HttpMethod::Get,
        HttpMethod::Head,
        HttpMethod::Post,
        HttpMethod::Put,
        HttpMethod::Delete,
        HttpMethod::Connect,
        HttpMethod::Options,
        HttpMethod::Trace,
        HttpMethod::Patch,
    ];

    /// The method as sent in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            HttpMethod::Get => "GET",
            HttpMethod::Head => "HEAD",
            HttpMethod::Post => "POST",
            HttpMethod::Put => "PUT",
            HttpMethod::Delete => "DELETE",
            HttpMethod::Connect => "CONNECT",
            HttpMethod::Options => "OPTIONS",
            HttpMethod::Trace => "TRACE",
            HttpMethod::Patch => "PATCH",
        }
    }
}

/// A backend with its weight and filters that only its requests pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpBackendRef {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendRef,
    /// Filters for requests to this backend alone, after those of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpRouteFilter>,
}

/// One step that requests and responses pass; `type` says which of the other fields is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteFilter {
    /// Which filter.
    #[serde(rename = "type")]
    pub filter_type: HttpFilterType,
    /// Changes request headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes response headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Sends a copy of requests elsewhere and ignores the answer; may be given several times.
    pub request_mirror: Option<RequestMirror>,
    /// Answers with a redirect.
    pub request_redirect: Option<RequestRedirect>,
    /// Changes host and path of requests.
    pub url_rewrite: Option<UrlRewrite>,
    /// Answers preflight requests and marks responses for cross-origin use.
    pub cors: Option<Cors>,
    /// Asks another service whether the request may pass (experimental).
    pub external_auth: Option<ExternalAuth>,
    /// A filter that is defined in another resource.
    pub extension_ref: Option<LocalObjectReference>,
}

/// Names of the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum HttpFilterType {
    /// Changes request headers.
    RequestHeaderModifier,
    /// Changes response headers.
    ResponseHeaderModifier,
    /// Sends a copy of requests elsewhere.
    RequestMirror,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Cross-origin resource sharing.
    #[serde(rename = "CORS")]
    Cors,
    /// Asks another service (experimental).
    ExternalAuth,
    /// Defined in another resource.
    ExtensionRef,
}

/// A filter with the fields its type asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HttpFilter<'a> {
    /// Changes request headers.
    RequestHeaderModifier(&'a HeaderModifier),
    /// Changes response headers.
    ResponseHeaderModifier(&'a HeaderModifier),
    /// Sends a copy of requests elsewhere.
    RequestMirror(&'a RequestMirror),
    /// Answers with a redirect.
    RequestRedirect(&'a RequestRedirect),
    /// Changes host and path.
    UrlRewrite(&'a UrlRewrite),
    /// Cross-origin resource sharing.
    Cors(&'a Cors),
    /// Asks another service.
    ExternalAuth(&'a ExternalAuth),
    /// Defined in another resource.
    ExtensionRef(&'a LocalObjectReference),
}

impl HttpRouteFilter {
    /// The filter that `type` names; nothing when its field is missing, which validation reports.
    pub fn filter(&self) -> Option<HttpFilter<'_>> {
        match self.filter_type {
            HttpFilterType::RequestHeaderModifier => {
                self.request_header_modifier.as_ref().map(HttpFilter::RequestHeaderModifier)
            }
            HttpFilterType::ResponseHeaderModifier => {
                self.response_header_modifier.as_ref().map(HttpFilter::ResponseHeaderModifier)
            }
            HttpFilterType::RequestMirror => self.request_mirror.as_ref().map(HttpFilter::RequestMirror),
            HttpFilterType::RequestRedirect => self.request_redirect.as_ref().map(HttpFilter::RequestRedirect),
            HttpFilterType::UrlRewrite => self.url_rewrite.as_ref().map(HttpFilter::UrlRewrite),
            HttpFilterType::Cors => self.cors.as_ref().map(HttpFilter::Cors),
            HttpFilterType::ExternalAuth => self.external_auth.as_ref().map(HttpFilter::ExternalAuth),
            HttpFilterType::ExtensionRef => self.extension_ref.as_ref().map(HttpFilter::ExtensionRef),
        }
    }
}

/// Changes of headers: first `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Replaces the header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HttpHeader>,
    /// Adds a value to the header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HttpHeader>,
    /// Removes the header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpHeader {
    /// Name, without regard to case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Value.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// Sends a copy of requests elsewhere and ignores the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// Where the copy goes.
    pub backend_ref: BackendObjectReference,
    /// Share of requests to copy, in percent; without it and `fraction`, all.
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// Share of requests to copy, as a fraction.
    pub fraction: Option<Fraction>,
}

/// A fraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fraction {
    /// Numerator.
    pub numerator: u32,
    /// Denominator, at least 1.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1))]
    pub denominator: u32,
}

/// Answers with a redirect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// Scheme of the new location; without it, the request's.
    pub scheme: Option<RedirectScheme>,
    /// Host of the new location; without it, the request's.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,
    /// Path of the new location; without it, the request's.
    pub path: Option<HttpPathModifier>,
    /// Port of the new location; without it, that of the scheme if given, else that of the listener.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Status code: 301, 302, 303, 307 or 308.
    #[schemars(extend("enum" = [301, 302, 303, 307, 308], "default" = 302))]
    pub status_code: Option<u16>,
}

/// Scheme of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RedirectScheme {
    /// http.
    Http,
    /// https.
    Https,
}

/// Changes host and path of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// New host.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,
    /// New path.
    pub path: Option<HttpPathModifier>,
}

/// How a path is changed; `type` says which of the other fields is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpPathModifier {
    /// How.
    #[serde(rename = "type")]
    pub modifier_type: PathModifierType,
    /// The new path.
    #[schemars(length(max = 1024))]
    pub replace_full_path: Option<String>,
    /// Replaces the prefix that the rule matched; only with `PathPrefix` matches.
    #[schemars(length(max = 1024))]
    pub replace_prefix_match: Option<String>,
}

/// How a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// The whole path is replaced.
    ReplaceFullPath,
    /// The matched prefix is replaced.
    ReplacePrefixMatch,
}

/// Cross-origin resource sharing (Fetch standard).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Origins that may read responses: `https://shop.example`, `https://*.shop.example`, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub allow_origins: Vec<String>,
    /// Whether cookies and other credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// Methods that may be used, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    pub allow_methods: Vec<String>,
    /// Request headers that may be sent, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub allow_headers: Vec<String>,
    /// Response headers that scripts may read, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub expose_headers: Vec<String>,
    /// Seconds for which browsers keep the answer to a preflight request.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub max_age: u32,
}

impl Default for Cors {
    fn default() -> Self {
        Cors {
            allow_origins: Vec::new(),
            allow_credentials: None,
            allow_methods: Vec::new(),
            allow_headers: Vec::new(),
            expose_headers: Vec::new(),
            max_age: five(),
        }
    }
}

/// Asks another service whether a request may pass (experimental).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuth {
    /// Protocol of the service: Envoy's gRPC check or a plain HTTP request.
    pub protocol: ExternalAuthProtocol,
    /// The service.
    pub backend_ref: BackendObjectReference,
    /// Settings for `GRPC`.
    pub grpc: Option<GrpcAuth>,
    /// Settings for `HTTP`.
    pub http: Option<HttpAuth>,
    /// Whether and how much of the request body is sent along.
    pub forward_body: Option<ForwardBody>,
}

/// Protocol of an authorization service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExternalAuthProtocol {
    /// An HTTP request; 200 lets pass.
    Http,
    /// `envoy.service.auth.v3.Authorization`.
    Grpc,
}

/// Settings for an authorization service over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcAuth {
    /// Request headers to send; without any, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allowed_headers: Vec<String>,
}

/// Settings for an authorization service over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpAuth {
    /// Prefix put before the path of the request.
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
    /// Request headers to send besides Host, Method, Path, Content-Length and Authorization.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allowed_headers: Vec<String>,
    /// Headers of the answer that are put on the request; without any, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allowed_response_headers: Vec<String>,
}

/// How much of a body is sent along.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForwardBody {
    /// Most bytes to buffer; larger requests are answered with 413. 0 sends no body.
    #[serde(default)]
    pub max_size: u16,
}

/// Limits of time of a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteTimeouts {
    /// From the first byte of the request to the last of the response, retries included; `0s` is no limit.
    pub request: Option<Duration>,
    /// For one try at one backend; at most `request`; `0s` is no limit.
    pub backend_request: Option<Duration>,
}

/// When failed requests are sent again (experimental).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteRetry {
    /// Status codes of the backend that are retried, 400 to 599, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 400, max = 599)))]
    pub codes: Vec<u16>,
    /// How many times a request is sent again.
    #[schemars(range(min = 1))]
    pub attempts: Option<u32>,
    /// Least time between tries.
    pub backoff: Option<Duration>,
}

/// Keeps a client at one backend endpoint (experimental, GEP-1619).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// Name of the cookie or header: letters, digits, `-`, `_` and a few other signs, no spaces; no header with a meaning of
    /// its own. Without it, one is made up.
    #[schemars(length(max = 128))]
    pub session_name: Option<String>,
    /// Time after which a session ends in any case, 1s or more; required for permanent cookies.
    pub absolute_timeout: Option<Duration>,
    /// Time after which an unused session ends, at most `absoluteTimeout` (GEP-1619; the definitions of v1.6.1 leave it out).
    pub idle_timeout: Option<Duration>,
    /// Where the session is kept.
    #[serde(rename = "type", default)]
    pub persistence_type: SessionPersistenceType,
    /// The cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// Where a session is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SessionPersistenceType {
    /// In a cookie.
    #[default]
    Cookie,
    /// In a header that the client sends back.
    Header,
}

/// The cookie of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CookieConfig {
    /// How long the cookie lives.
    #[serde(default)]
    pub lifetime_type: CookieLifetime,
}

/// How long a cookie lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// For `absoluteTimeout`, by an Expires or Max-Age attribute.
    Permanent,
    /// Until the browser ends.
    #[default]
    Session,
}

fn default_rules() -> Vec<HttpRouteRule> {
    vec![HttpRouteRule::default()]
}

fn default_matches() -> Vec<HttpRouteMatch> {
    vec![HttpRouteMatch::default()]
}

fn slash() -> String {
    "/".to_owned()
}

fn hundred() -> u32 {
    100
}

fn five() -> u32 {
    5
}
