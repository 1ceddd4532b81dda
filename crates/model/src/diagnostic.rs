//! Findings about resources: what is wrong, where, and what to do.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::field_path::FieldPath;
use crate::meta::ResourceKey;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work; the resource, or the part named, is left out.
    Error,
    /// It works, but maybe not as meant.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// The lower-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A place in a file, counted from 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// Path of the file, as it was given.
    pub file: Arc<str>,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A finding about one resource, by one who does not know which resource it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which rule is broken.
    pub code: Code,
    /// Which field.
    pub path: FieldPath,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Finding {
    /// An error.
    pub fn error(code: Code, path: FieldPath, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, code, path, message: message.into(), help: None }
    }

    /// A warning.
    pub fn warning(code: Code, path: FieldPath, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, code, path, message: message.into(), help: None }
    }

    /// The same with what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The diagnostic about the resource of that key.
    pub fn about(self, resource: ResourceKey) -> Diagnostic {
        Diagnostic {
            severity: self.severity,
            code: self.code,
            resource: Some(resource),
            path: self.path,
            message: self.message,
            help: self.help,
            location: None,
        }
    }
}

/// One finding about one resource or file. Shown as `file:line:col: error[SELV0102] HTTPRoute shop/cart: …`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Which rule is broken.
    pub code: Code,
    /// Which resource; none for files that cannot be read.
    pub resource: Option<ResourceKey>,
    /// Which field of it.
    pub path: FieldPath,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Where, if it came from a file.
    pub location: Option<Location>,
}

impl Diagnostic {
    /// An error about a resource.
    pub fn error(code: Code, resource: ResourceKey, path: FieldPath, message: impl Into<String>) -> Self {
        Finding::error(code, path, message).about(resource)
    }

    /// A warning about a resource.
    pub fn warning(code: Code, resource: ResourceKey, path: FieldPath, message: impl Into<String>) -> Self {
        Finding::warning(code, path, message).about(resource)
    }

    /// Something good to know about a resource.
    pub fn info(code: Code, resource: ResourceKey, path: FieldPath, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Info, ..Diagnostic::error(code, resource, path, message) }
    }

    /// An error about a file.
    pub fn file_error(code: Code, location: Location, message: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Error,
            code,
            resource: None,
            path: FieldPath::root(),
            message: message.into(),
            help: None,
            location: Some(location),
        }
    }

    /// The same with what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with its place.
    #[must_use]
    pub fn at(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        write!(f, "{}[{}]", self.severity, self.code)?;
        if let Some(resource) = &self.resource {
            write!(f, " {resource}")?;
        }
        if !self.path.is_root() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

macro_rules! codes {
    ($($variant:ident = $number:literal, $title:literal, $doc:literal;)+) => {
        /// The rules that diagnostics are about. Numbers never change their meaning: 1 to 99 files and syntax,
        /// 100 to 199 fields, 200 to 299 attachment and references, 300 to 399 TLS, 400 to 499 policies,
        /// 500 to 599 running.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant = $number,)+
        }

        impl Code {
            /// All codes, by number.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// One line.
            pub const fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),+ }
            }

            /// One paragraph: what it means and what to do.
            pub const fn doc(self) -> &'static str {
                match self { $(Code::$variant => $doc),+ }
            }
        }
    };
}

impl Code {
    /// The number.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SELV{:04}", self.number())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

codes! {
    UnreadableFile = 1, "File cannot be read",
        "The file or folder could not be opened or read. Check that it exists and that Selvedge may read it.";
    FileTooLarge = 2, "File is too large",
        "The file is over the size limit and was not read. Split it into several files.";
    NotUtf8 = 3, "File is not UTF-8",
        "Files must be UTF-8 text. The place named is the first byte that is not; convert the file.";
    Syntax = 4, "Syntax error",
        "The document is neither YAML nor JSON. The place named is where reading stopped. Files with unexpanded templates must be rendered first. Other documents of the file are read.";
    TooComplex = 5, "Document is too deep or too large",
        "The document nests too deep, or holds too many values after its aliases are expanded. Such documents are not needed for any resource and are refused.";
    DuplicateKey = 6, "Key is given twice",
        "An object has the same key twice, so that one value would silently win. Remove one of them.";
    NotAnObject = 7, "Document is not a resource",
        "A document must be an object with apiVersion, kind and metadata.";
    DuplicateResource = 8, "Two resources of one name",
        "Two resources have the same kind, namespace and name. The first one is used, in the order of file names; rename or remove the other.";
    UnknownKind = 9, "Unknown kind",
        "Selvedge has no such kind. The help names the nearest kind that it has.";
    UnknownVersion = 10, "Unknown apiVersion",
        "The kind exists, but not in this group or version. The help names the versions that are read.";
    IgnoredKind = 11, "Kind is not used",
        "A well-known Kubernetes kind that Selvedge does not need. The resource is left alone.";
    Emptied = 12, "Folder or file has been emptied",
        "A folder or file that held resources holds none any more, as after a mount that failed or in the middle of a checkout. What it said before stays in effect, instead of every listener being closed. To have nothing served, end the process, or leave one resource there that serves nothing, such as a Namespace.";

    UnknownField = 100, "Unknown field",
        "The field does not exist at this place. The help names the nearest field that does. Unknown fields are errors because a misspelt setting would otherwise silently do nothing.";
    WrongType = 101, "Wrong type of value",
        "The value has another type than the field. Quote numbers and booleans that are meant as text.";
    MissingField = 102, "Required field is missing",
        "The resource cannot work without the field.";
    UnknownValue = 103, "Value is not one of those allowed",
        "The field takes one of a fixed set of values; the help names the nearest.";
    OutOfRange = 104, "Number is out of range",
        "The number is smaller or larger than the field allows.";
    WrongLength = 105, "Too long, too short, too many or too few",
        "A text or list is shorter or longer than the field allows.";
    WrongFormat = 106, "Value has the wrong form",
        "The text does not have the form that the field asks for, such as a duration or base64.";
    InvalidName = 107, "Name is invalid",
        "Names of resources are DNS subdomains: lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit. Section names and ports have similar rules.";
    InvalidHostname = 108, "Hostname is invalid",
        "Hostnames are DNS names in lower case without a port, maybe with one leading `*.` label where a wildcard is allowed; IP addresses are not hostnames.";
    InvalidPath = 109, "Path is invalid",
        "Paths of matches begin with `/` and hold no `//`, `/./`, `/../`, `%2f`, `%2F` or `#`, do not end in `/.` or `/..`, and hold only characters of RFC 3986.";
    InvalidHeaderName = 110, "Header name is invalid",
        "Header names are tokens of RFC 9110 section 5.1: letters, digits and a few signs, no spaces and no colon.";
    InvalidHeaderValue = 111, "Header value is invalid",
        "Header values hold visible characters, spaces and tabs; no line breaks or other control characters.";
    DuplicateItem = 112, "Item is given twice",
        "The list must not hold the same item, name or key twice.";
    InconsistentUnion = 113, "Field does not fit the type",
        "`type` says which one of the other fields must be set; another is set, or the one is missing.";
    ConflictingFields = 114, "Fields exclude each other",
        "Two settings cannot be used together; the message says which to remove.";
    InvalidRegex = 115, "Regular expression is invalid",
        "The regular expression cannot be compiled, or is too large. Look-around and back-references are not supported: matching time is always linear.";
    InvalidAddress = 116, "Address is invalid",
        "The address is not an IP address of the family asked for, or not an acceptable one.";
    InvalidLabel = 117, "Label or selector is invalid",
        "A label name, label value or selector does not follow the rules of Kubernetes.";
    InvalidTlsCombination = 118, "TLS settings do not fit the protocol",
        "HTTPS and TLS listeners need `tls`, other protocols must not have it, and certificates are needed exactly when TLS ends at the listener.";
    InvalidTimeout = 119, "Durations contradict each other",
        "One duration must not be longer than another, such as a backend timeout than the request timeout that holds it.";
    WrongTarget = 120, "Setting does not apply to the target",
        "The setting has no meaning for the kind of target that the policy names.";
    InvalidTemplate = 121, "Template is invalid",
        "The template of an access log line has an unknown operator or an unclosed one.";

    UnknownParent = 200, "Parent does not exist or is not accepted",
        "A route or ListenerSet names a Gateway or ListenerSet that does not exist or is itself not accepted, so that it serves nothing. Correct the name or namespace, or repair the parent first.";
    NoMatchingListener = 201, "No listener of that name or port",
        "The parentRef selects listeners by sectionName or port, and the parent has none such. The message lists the listeners that it has.";
    NotAllowedByParent = 202, "The parent does not admit it",
        "The listeners admit routes by namespace and kind (allowedRoutes), and Gateways admit ListenerSets by namespace (allowedListeners). Change these, or move the resource.";
    NoMatchingHostname = 203, "No hostname in common with the listener",
        "A route serves the hostnames that it has in common with its listeners, and it has none in common with any.";
    BackendNotFound = 204, "Backend does not exist",
        "The Service, or the port of it, does not exist. Requests that fall to the backend are answered with 500.";
    ReferenceNotPermitted = 205, "Reference into another namespace is not granted",
        "References into another namespace need a ReferenceGrant in that namespace. The message says what it must allow.";
    UnsupportedReference = 206, "Reference to a kind that is not supported",
        "The reference names a kind of resource that has no meaning at this place.";
    UnsupportedValue = 207, "Value is not supported",
        "The value is valid but not supported here. The rule that holds it answers with 500 or is left out, as the message says.";
    DroppedRule = 208, "Rule is left out",
        "The rule cannot work and is left out; the other rules of the route are served.";
    ListenerConflict = 209, "Listeners conflict",
        "Listeners that share a port must have the same protocol family and different hostnames. Within one Gateway all that conflict are left out; otherwise the Gateway wins over its ListenerSets, and the older over the younger.";
    UnknownClass = 210, "GatewayClass does not exist",
        "Nothing serves the Gateway, because its class does not exist. In a folder, the class `selvedge` needs no GatewayClass.";
    UnsupportedListener = 211, "Listener cannot be served",
        "Protocol, TLS mode or hostname of the listener are not supported. Other listeners are served.";
    UnsupportedRouteKind = 212, "Kind of route does not suit the listener",
        "allowedRoutes.kinds names a kind of route that cannot attach to a listener of this protocol. The other kinds can.";
    UnsupportedParameters = 213, "Parameters are not supported",
        "parametersRef names parameters of a kind that Selvedge does not know. Remove it.";
    UnusableAddress = 214, "Address cannot be used",
        "The address is of a type that is not supported, or this machine cannot listen on it.";
    UnsupportedBackendProtocol = 215, "Protocol of the backend does not suit the route",
        "The protocol or appProtocol of the Service port is not one that this kind of route can speak.";
    NoEndpoints = 216, "Backend has no endpoints",
        "No endpoint is known for the Service port, so that requests to it are answered with 503. Check the EndpointSlices: their label kubernetes.io/service-name, their port names and the readiness of the endpoints.";
    InvalidEndpoint = 217, "Endpoint is unusable",
        "The address or port of the endpoint cannot be used. The other endpoints are.";
    ShadowedRoute = 218, "Another route wins",
        "Only one route can serve a TCP or UDP listener, or one name of a TLS listener: the oldest. This one gets no traffic there.";
    ShadowedMatch = 219, "Match can never be met",
        "An older route, or an earlier rule, has the same match on the same listener and hostname, so that this one gets no traffic.";
    DuplicateAddress = 220, "Two workloads have one address",
        "An address belongs to one Workload, or nobody could tell who is called. The older one has it; the younger loses it, and is not served by a proxy, until its address is changed.";
    SecondMesh = 221, "More than one Mesh",
        "There is one Mesh: the one named `default`, or else the oldest. The others have no effect; remove them. One of another name is in effect only until there is one named `default`; rename it.";
    UnknownWorkload = 222, "Workload does not exist",
        "A proxy was started beside a Workload that does not exist, or that lost its address to another. Nothing is served for it until the Workload is there; check namespace and name.";
    DuplicateHost = 223, "Two resources have one host or address",
        "A host name or address of an ExternalService is already that of a Service, a Workload or an older ExternalService, which keeps it. Or two Services have one cluster IP, so that clients cannot tell them apart.";
    OtherTrustDomain = 224, "The Mesh names another trust domain than the certificates",
        "Certificates of the mesh are of one trust domain from the first start on, and a Mesh that names another one is not taken: what it said before stays in effect. Write the old name again. To move a mesh, start a control plane with a store of its own for the new trust domain, let both Meshes believe each other (spec.federation), name both in AccessPolicies, let the proxies join the new one with new tokens, and end the old one.";
    UntrustedDomain = 225, "Trust domain is not believed",
        "A Workload is of a trust domain that is neither the Mesh's own nor named in its `federation`. Nobody believes its identity, so that no connection to or from it succeeds. Add the trust domain with its bundle to the Mesh.";
    MissingIdentity = 226, "Proxy lacks the identity of its workload",
        "A proxy stands beside a Workload whose identity it was not given, so that it cannot prove it: nothing that needs mutual TLS works for that workload. Start it with one --identity NAMESPACE/SERVICEACCOUNT for each workload, besides its own.";
    NothingAnswers = 227, "Rule sends requests nowhere",
        "The rule has no backend, or all of them have weight 0, and no filter answers in their place. As the Gateway API says, requests are answered with 500, gRPC calls with UNAVAILABLE, and connections of TCP, TLS and UDP routes are refused. Give a backend a weight above 0, or remove the rule.";
    OrphanEndpoints = 228, "EndpointSlice belongs to no Service",
        "An EndpointSlice belongs to the Service that its label kubernetes.io/service-name names, in its own namespace. Without the label, or with a name that no Service has, its endpoints get no traffic.";

    MissingCertificate = 300, "Certificate is missing",
        "A listener that ends TLS needs at least one certificate. Name a Secret of type kubernetes.io/tls in tls.certificateRefs.";
    InvalidCertificate = 301, "Certificate or key is unusable",
        "The Secret does not exist, may not be used from here, does not hold PEM, or the key does not belong to the certificate.";
    InvalidCaCertificate = 302, "CA certificates are unusable",
        "The ConfigMap or Secret does not exist, may not be used from here, or its ca.crt does not hold PEM certificates. What depends on it refuses connections rather than trusting everyone.";
    CertificateExpired = 303, "Certificate is expired or not yet valid",
        "The certificate is served all the same, but clients will refuse it. Renew it, or check the clock.";
    CertificateNameMismatch = 304, "Certificate is for other names",
        "No certificate name covers the hostname of the listener, so that clients will refuse it.";
    OverlappingTls = 305, "TLS listeners overlap",
        "Two HTTPS listeners of one port share a hostname or a certificate. Clients may send requests for one on a connection of the other; they are answered with 421 and repeated by the client on a new connection.";
    UnverifiedBackendName = 306, "Backend speaks TLS without a BackendTLSPolicy",
        "The backend is asked for TLS by its appProtocol or port, but no BackendTLSPolicy says by which name and CA it is verified. Its own name and the roots of the operating system are used.";

    TargetNotFound = 400, "Target of the policy does not exist",
        "The policy names a resource or section that does not exist in its namespace. It has no effect there.";
    PolicyConflict = 401, "Policies conflict",
        "Two policies of the same kind set the same thing for the same target. The older wins.";
    NoEffect = 402, "Setting has no effect",
        "The setting has no effect at this place. Remove it, or attach the policy elsewhere.";
    InvalidPolicyValue = 403, "Value of the policy is unusable",
        "The value cannot be used, so that the policy is left out.";
    BrokenAccessPolicy = 404, "AccessPolicy is broken",
        "A range, path, identity or expression of the AccessPolicy cannot be understood, or the whole policy cannot be read. Its targets deny everything until it is corrected: what a broken policy meant to keep out must not come in.";
    BrokenAuthPolicy = 405, "AuthPolicy is broken",
        "Keys, issuers or headers of the AuthPolicy cannot be used, or the whole policy cannot be read. Its targets answer no request (500) and reset other connections until it is corrected: nobody could prove who they are.";
    UnusableKey = 406, "Key of an issuer is left out",
        "A key of a JWK set is of a kind that is not known here or is not for signatures. Tokens that it has signed are refused; those of the other keys of the set are not.";
}

/// The candidate most like `name`, if one is like enough to be what was meant.
///
/// Compares without regard to case by the number of inserted, removed, changed and swapped characters (Damerau-Levenshtein);
/// at most a third of the name may differ.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 128 {
        return None;
    }
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Kind;

    #[test]
    fn diagnostics_read_well() {
        let diagnostic = Diagnostic::error(
            Code::UnknownField,
            ResourceKey::new(Kind::HttpRoute, "shop", "cart"),
            FieldPath::root().field("spec").field("ruels"),
            "unknown field `ruels`",
        )
        .help("did you mean `rules`?")
        .at(Location { file: "a.yaml".into(), line: 3, column: 7 });
        assert_eq!(
            diagnostic.to_string(),
            "a.yaml:3:7: error[SELV0100] HTTPRoute shop/cart spec.ruels: unknown field `ruels`\n  help: did you mean `rules`?"
        );
        let json = serde_json::to_value(&diagnostic).unwrap();
        assert_eq!(json["code"], "SELV0100");
        assert_eq!(json["path"], "spec.ruels");
        assert_eq!(json["location"]["line"], 3);
    }

    #[test]
    fn codes_are_sorted_and_unique() {
        assert!(Code::ALL.is_sorted_by(|a, b| a.number() < b.number()));
    }

    #[test]
    fn the_nearest_name_is_what_was_meant() {
        let kinds = || Kind::ALL.iter().map(|kind| kind.name());
        assert_eq!(nearest("HTTPRuote", kinds()), Some("HTTPRoute"));
        assert_eq!(nearest("httproute", kinds()), Some("HTTPRoute"));
        assert_eq!(nearest("Deployment", kinds()), None);
        assert_eq!(nearest("", kinds()), None);
        assert_eq!(nearest("prot", ["port", "path"]), Some("port"));
    }
}
