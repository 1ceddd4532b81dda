//! The one table of metric families: names are stable, and `docs/metrics.md` is made from it.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Counter,
    Gauge,
    Histogram,
}

/// What a family is called and says.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Counters carry `_total`, as they are written in a query.
    pub name: &'static str,
    pub kind: Type,
    /// Label names, in the order in which values are given. None of them ever carries what a client sent.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// One metric family.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Family { $(#[doc = $help] $id,)* }

        /// All families, in the order of [`Family`].
        pub const FAMILIES: &[Spec] = &[
            $(Spec { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

families! {
    ConnectionsOpened Counter "selvedge_downstream_connections_total" ["bind"]
        "Connections accepted on a socket.";
    ConnectionsActive Gauge "selvedge_downstream_connections_active" ["bind"]
        "Connections open now on a socket.";
    ConnectionsRejected Counter "selvedge_downstream_connections_rejected_total" ["bind", "reason"]
        "Connections closed before a request could be read, by reason.";
    TlsHandshakes Counter "selvedge_downstream_tls_handshakes_total" ["bind", "version", "outcome"]
        "TLS handshakes by protocol version (none when it failed before one was agreed) and outcome.";
    Requests Counter "selvedge_http_requests_total" ["listener", "route", "code", "protocol"]
        "HTTP requests answered. code is exact for common statuses, else its class (4xx); 0 when the client left before an answer. route is empty when none matched.";
    RequestsActive Gauge "selvedge_http_requests_active" ["listener"]
        "HTTP requests in progress.";
    RequestDuration Histogram "selvedge_http_request_duration_seconds" ["listener", "route"]
        "From the first look at a request to the last byte of its response.";
    RequestBytes Counter "selvedge_http_request_bytes_total" ["listener", "route"]
        "Bytes of request bodies received.";
    ResponseBytes Counter "selvedge_http_response_bytes_total" ["listener", "route"]
        "Bytes of response bodies sent.";
    RequestFlags Counter "selvedge_http_request_flags_total" ["listener", "flag"]
        "Requests that ended with a response flag (UH, UF, UT, DC …, as in the access log).";
    RequestRetries Counter "selvedge_http_retries_total" ["listener", "route"]
        "Tries after the first one, including hedges.";
    GrpcResponses Counter "selvedge_grpc_responses_total" ["listener", "route", "grpc_status"]
        "gRPC answers by status number.";
    StreamConnections Counter "selvedge_stream_connections_total" ["listener", "route"]
        "TCP and TLS connections and UDP sessions ended.";
    StreamActive Gauge "selvedge_stream_connections_active" ["listener"]
        "TCP and TLS connections and UDP sessions in progress.";
    StreamDuration Histogram "selvedge_stream_duration_seconds" ["listener", "route"]
        "How long TCP and TLS connections and UDP sessions lived.";
    StreamReceived Counter "selvedge_stream_received_bytes_total" ["listener", "route"]
        "Bytes received from clients.";
    StreamSent Counter "selvedge_stream_sent_bytes_total" ["listener", "route"]
        "Bytes sent to clients.";
    MeshRefused Counter "selvedge_mesh_refused_total" ["listener", "reason"]
        "Connections, tunnels and proxy requests of workloads that were refused: unknown_destination, no_destination (not redirected to us), loop (to our own port), clear_text (mutual TLS is demanded), tunnel_target (an address that is not the workload's), handshake, form (of a proxy request).";
    MeshPassed Counter "selvedge_mesh_passed_total" ["listener"]
        "Connections of workloads passed on to destinations that nothing is known of.";
    MeshDiscoveries Counter "selvedge_mesh_discoveries_total" ["listener", "outcome"]
        "Questions about unknown destinations by outcome: found, unknown, limited (too many were waiting already).";
    TunnelConnections Counter "selvedge_mesh_tunnel_connections_total" ["outcome"]
        "Tunnel connections (HBONE) to other members by outcome: opened, connect_failure, handshake_failure (either side did not prove what it must), timeout.";
    TunnelConnectionsActive Gauge "selvedge_mesh_tunnel_connections_active" []
        "Tunnel connections to other members open now.";
    TunnelStreams Counter "selvedge_mesh_tunnel_streams_total" ["outcome"]
        "Streams asked for on tunnel connections by outcome: opened, refused (by the other side), failed (no connection, or it broke), overflow (all connections to that member are full).";
    TunnelStreamsActive Gauge "selvedge_mesh_tunnel_streams_active" []
        "Streams open now on tunnel connections to other members.";
    MutualTls Counter "selvedge_mesh_connections_total" ["listener", "security"]
        "Connections to workloads by security: mutual_tls, clear_text.";
    MutualTlsAudit Counter "selvedge_mtls_audit_total" ["listener"]
        "Connections in clear text that were let through and would be refused if mutual TLS were demanded.";
    DnsQueries Counter "selvedge_dns_queries_total" ["outcome"]
        "DNS queries of applications: names of the mesh, forwarded, cached, failed (no upstream server answered), refused (not understood or not served), shed (too many were waiting).";
    UpstreamRequests Counter "selvedge_upstream_requests_total" ["cluster", "outcome"]
        "Tries sent upstream by class of the answer (2xx … 5xx), or why none came (connect_failure, timeout, reset).";
    UpstreamDuration Histogram "selvedge_upstream_request_duration_seconds" ["cluster"]
        "From sending a try to the head of its answer, or to its failure.";
    UpstreamActive Gauge "selvedge_upstream_requests_active" ["cluster"]
        "Tries in flight upstream.";
    UpstreamPending Gauge "selvedge_upstream_requests_pending" ["cluster"]
        "Requests that wait for a connection.";
    UpstreamRetries Counter "selvedge_upstream_retries_total" ["cluster"]
        "Retries sent.";
    UpstreamConnectFailures Counter "selvedge_upstream_connect_failures_total" ["cluster"]
        "Connections that could not be made.";
    UpstreamConnections Counter "selvedge_upstream_connections_total" ["cluster"]
        "Connections opened.";
    UpstreamConnectionsActive Gauge "selvedge_upstream_connections_active" ["cluster"]
        "Connections open now.";
    UpstreamPoolHits Counter "selvedge_upstream_pool_hits_total" ["cluster"]
        "Requests that found their connection in the pool.";
    UpstreamOverflow Counter "selvedge_upstream_overflow_total" ["cluster", "limit"]
        "Refused by a circuit breaker limit (pending, requests, retries) or by the retry budget.";
    UpstreamNoEndpoint Counter "selvedge_upstream_no_endpoint_total" ["cluster"]
        "Requests that no endpoint could take.";
    UpstreamHealthChecks Counter "selvedge_upstream_health_checks_total" ["cluster"]
        "Active health checks made.";
    UpstreamHealthCheckFailures Counter "selvedge_upstream_health_check_failures_total" ["cluster"]
        "Active health checks that failed.";
    UpstreamDnsFailures Counter "selvedge_upstream_dns_failures_total" ["cluster"]
        "Resolutions that failed; the last addresses stay in use.";
    UpstreamEjections Counter "selvedge_upstream_ejections_total" ["cluster"]
        "Endpoints ejected by outlier detection.";
    UpstreamEndpoints Gauge "selvedge_upstream_endpoints" ["cluster", "state"]
        "Endpoints by state (healthy, pending, unhealthy, ejected, probation).";
    ConfigRevision Gauge "selvedge_config_revision" []
        "Number of the configuration that serves; it grows with each one installed.";
    ConfigReloads Counter "selvedge_config_reloads_total" ["outcome"]
        "Reloads by outcome (success, failure).";
    ConfigLastGood Gauge "selvedge_config_last_good" []
        "1 while an older configuration serves because the newest is unusable.";
    ConfigLastSuccess Gauge "selvedge_config_last_success_timestamp_seconds" []
        "When a configuration was last installed, in seconds since the epoch.";
    ControlBehind Gauge "selvedge_control_behind" []
        "Proxies of this control plane that have seen a newer state of the source than it has: they keep that until it has caught up.";
    ControlProxies Gauge "selvedge_control_proxies" ["role", "state"]
        "Proxies of this control plane by role and state: in_sync; updating (for a moment at each change); stale (for more than 5 s); refusing (a version that is NACKed); errors; and for an hour, gone (without a word) and left.";
    CaExpiry Gauge "selvedge_ca_expiry_timestamp_seconds" ["authority"]
        "When the root and the intermediate end that sign, or will next, in seconds since the epoch.";
    CaAlarm Gauge "selvedge_ca_alarm" ["authority"]
        "0: well; 1: from files (--ca-intermediate) and half, 2: four fifths of its life is over; 3: it is not valid.";
    CaFilesUnusable Gauge "selvedge_ca_files_unusable" []
        "1 while the files of --ca-intermediate cannot be used, so that the former ones stay.";
    CertificateExpiry Gauge "selvedge_certificate_expiry_timestamp_seconds" ["secret", "fingerprint"]
        "When a served certificate expires, in seconds since the epoch; fingerprint is the start of its SHA-256.";
    IdentityExpiry Gauge "selvedge_identity_expiry_timestamp_seconds" ["identity"]
        "When the certificate of an identity of this process expires, in seconds since the epoch; 0 when there is none.";
    IdentityAlarm Gauge "selvedge_identity_alarm" ["identity"]
        "0: well; renewing fails and 1: half, 2: four fifths of the certificate's life is over; 3: there is no valid certificate.";
    IdentityRenewals Counter "selvedge_identity_renewals_total" ["identity"]
        "Certificates obtained.";
    IdentityFailures Gauge "selvedge_identity_failures" ["identity"]
        "Tries to obtain a certificate that failed since the last one was obtained.";
    Draining Gauge "selvedge_draining" []
        "1 while the process drains its connections to end.";
    OverloadShed Counter "selvedge_overload_shed_total" ["what"]
        "Requests answered 503 and connections closed at accept because of overload.";
    LimitsHit Counter "selvedge_limits_hit_total" ["limit"]
        "Requests, connections or messages refused, cut or ended because of a limit; the values are below.";
    AccessDenied Counter "selvedge_access_denied_total" ["policy"]
        "Requests and connections denied, by the AccessPolicy (namespace/name) that did; default when none allowed them.";
    AccessAudited Counter "selvedge_access_audited_total" ["policy"]
        "Requests and connections that an AccessPolicy with action Audit matched; default for what the default Audit of the mesh would deny.";
    AuthRefused Counter "selvedge_auth_refused_total" ["policy", "reason"]
        "Requests and connections that an AuthPolicy (namespace/name) refused, by reason (missing, repeated, too_long, malformed, header, algorithm, key, signature, issuer, audience, expired, not_yet, not_http, broken).";
    AuthAccepted Counter "selvedge_auth_accepted_total" ["policy", "by"]
        "Tokens that an AuthPolicy accepted, by what was looked at: signature, or cache when it was verified before.";
    AccessLogWritten Counter "selvedge_access_log_records_total" ["output"]
        "Records handed to an access log output.";
    AccessLogDropped Counter "selvedge_access_log_dropped_total" ["output"]
        "Records not written because the output could not keep up or failed.";
    OtlpExported Counter "selvedge_otlp_exported_total" ["signal"]
        "Spans and log records accepted by the collector.";
    OtlpDropped Counter "selvedge_otlp_dropped_total" ["signal"]
        "Spans and log records given up: queue full, or the collector refused them or stayed away.";
    BuildInfo Gauge "selvedge_build_info" ["version"]
        "1, with the version of the binary.";
    ProcessCpu Counter "process_cpu_seconds_total" []
        "User and system CPU time spent.";
    ProcessMemory Gauge "process_resident_memory_bytes" []
        "Resident memory.";
    ProcessVirtualMemory Gauge "process_virtual_memory_bytes" []
        "Virtual memory.";
    ProcessFds Gauge "process_open_fds" []
        "Open file descriptors.";
    ProcessMaxFds Gauge "process_max_fds" []
        "Limit of open file descriptors.";
    ProcessStart Gauge "process_start_time_seconds" []
        "When the process started, in seconds since the epoch.";
}

impl Family {
    pub fn spec(self) -> &'static Spec {
        &FAMILIES[self as usize]
    }
}

/// The table as the document that users read (`docs/metrics.md`).
pub fn markdown() -> String {
    use std::fmt::Write;
    let mut out = String::from(
        "# Metrics\n\n<!-- Made from crates/proxy/src/telemetry/families.rs: `UPDATE=1 cargo test -p selvedge-proxy families` rewrites it. -->\n\n\
         Served at `/metrics` of the admin listener, as OpenMetrics when the `Accept` header asks for it, else as Prometheus text.\n\
         No label ever carries a value that a client chose, so the number of series follows the configuration alone; the series of\n\
         a route, listener or cluster that is gone end with it. Durations have buckets from 0.5 ms to 60 s.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for f in FAMILIES {
        let kind = match f.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let labels = f.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "| `{}` | {kind} | {labels} | {} |", f.name, f.help);
    }
    out.push_str("\n## Limits\n\nValues of `limit` in `selvedge_limits_hit_total`. All of them are there from the start, at 0.\n\n| limit | what it counts |\n|---|---|\n");
    for (label, help) in super::limits::LIMITS {
        let _ = writeln!(out, "| `{label}` | {help} |");
    }
    out.push_str("\n## Response flags\n\n| flag | long name | meaning |\n|---|---|---|\n");
    for (_, short, long, help) in super::Flags::ALL {
        let _ = writeln!(out, "| `{short}` | {long} | {help} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, fs, path::Path};

    #[test]
    fn families_have_unique_conventional_names() {
        let mut seen = HashSet::new();
        for f in FAMILIES {
            assert!(seen.insert(f.name), "{} twice", f.name);
            assert_eq!(f.kind == Type::Counter, f.name.ends_with("_total"), "{}", f.name);
            assert!(f.help.ends_with('.'), "{}", f.name);
        }
    }

    #[test]
    fn families_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let want = markdown();
        if std::env::var_os("UPDATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &want).unwrap();
        }
        let have = fs::read_to_string(&path).unwrap_or_default();
        assert!(have == want, "docs/metrics.md is old: run UPDATE=1 cargo test -p selvedge-proxy families");
    }
}
