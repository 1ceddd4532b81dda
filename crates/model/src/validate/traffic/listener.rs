//! Rules of settings of listeners.

use super::super::Report;
use super::{no_effect, not_zero};
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::ListenerSettings;

pub(super) fn listener(report: &mut Report, listener: &ListenerSettings, at: &At<'_>) {
    if let Some(cidrs) = &listener.trusted_cidrs {
        let hops = at.field("trustedHops");
        let at = at.field("trustedCidrs");
        report.unique(&at, cidrs, "network", String::clone);
        for (index, text) in cidrs.iter().enumerate() {
            report.check(Code::WrongFormat, &at.index(index), network(text));
        }
        if listener.trusted_hops.is_some_and(|hops| hops > 0) && !cidrs.is_empty() {
            let message = "`trustedCidrs` takes its place; remove one of the two";
            no_effect(report, &hops, message);
        }
    }
    if let Some(timeouts) = &listener.timeouts {
        not_zero(report, timeouts.handshake, &at.field("timeouts").field("handshake"));
    }
    if let Some(http2) = &listener.http2
        && http2.ping_interval.is_none_or(|interval| interval > Duration::ZERO)
    {
        not_zero(report, http2.ping_timeout, &at.field("http2").field("pingTimeout"));
    }
}

/// A network in CIDR notation, written as its first address.
fn network(text: &str) -> Result<(), String> {
    let net: ipnet::IpNet =
        text.parse().map_err(|_| format!("`{text}` is no network in CIDR notation, as 10.0.0.0/8 or fd00::/8 is"))?;
    if net.trunc() != net {
        return Err(format!("`{text}` has bits behind its prefix length; write `{}`", net.trunc()));
    }
    Ok(())
}
