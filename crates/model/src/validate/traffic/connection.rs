//! Rules of connections to backends.

use super::super::Report;
use super::{no_effect, not_zero};
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::{Connections, UpstreamProtocol};

pub(super) fn connections(report: &mut Report, connections: &Connections, at: &At<'_>) {
    not_zero(report, connections.connect_timeout, &at.field("connectTimeout"));
    let keepalive = at.field("keepalive");
    if let Some(own) = &connections.keepalive {
        if own.http2_ping_interval.is_none_or(|interval| interval > Duration::ZERO) {
            not_zero(report, own.http2_ping_timeout, &keepalive.field("http2PingTimeout"));
        }
        if let Some(tcp) = own.tcp.as_ref().filter(|tcp| tcp.time.is_none_or(|time| time > Duration::ZERO)) {
            not_zero(report, tcp.interval, &keepalive.field("tcp").field("interval"));
        }
    }
    if connections.protocol == Some(UpstreamProtocol::Http1) && connections.http2.is_some() {
        let message = "`http2` has no effect with protocol HTTP1; remove it, or write `protocol: HTTP2`";
        no_effect(report, &at.field("http2"), message);
    }
}
