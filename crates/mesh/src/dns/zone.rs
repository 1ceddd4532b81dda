//! Names of the mesh.

use super::blank;
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA},
    },
};
use selvedge_compile::snapshot::DnsNames;
use std::net::IpAddr;

/// Addresses in one answer; a client uses the first ones.
const MAX_ADDRESSES: usize = 256;

pub(super) enum Known {
    Answer(Box<Message>),
    /// Somebody else may know.
    Nothing,
}

/// What the mesh says to a query. Names count as written and with each search domain behind them; a name of the mesh without
/// addresses of the family that was asked for exists all the same (NODATA, RFC 2308), else clients would turn to a name
/// elsewhere.
pub(super) fn find(names: &DnsNames, query: &Query) -> Known {
    let name = plain(&query.name);
    let Some(addresses) = lookup(names, &name) else { return Known::Nothing };
    let ttl = u32::try_from(names.ttl.as_secs()).unwrap_or(u32::MAX);
    let wanted = |ip: &&IpAddr| match query.query_type {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let ours = matches!(query.query_type, RecordType::A | RecordType::AAAA | RecordType::ANY);
    // Names of others stay theirs but for addresses. HTTPS and SVCB records hold addresses too, and would lead past the proxy.
    let outside = domain(names, &name).is_none() && name.contains('.') && lookup_exact(names, &name).is_some();
    if !ours && outside && !matches!(query.query_type, RecordType::HTTPS | RecordType::SVCB) {
        return Known::Nothing;
    }
    let mut message = blank(ResponseCode::NoError);
    message.metadata.authoritative = true;
    let record = |ip: &IpAddr| {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
        };
        Record::from_rdata(query.name.clone(), ttl, data)
    };
    let mut answers: Vec<Record> = addresses.iter().filter(wanted).take(MAX_ADDRESSES).map(record).collect();
    if answers.is_empty() {
        message.add_authority(authority(names, &name, &query.name, ttl));
    } else {
        // Clients take the first.
        let start = rand::random_range(0..answers.len());
        answers.rotate_left(start);
        message.add_answers(answers);
    }
    Known::Answer(Box::new(message))
}

fn lookup<'n>(names: &'n DnsNames, name: &str) -> Option<&'n Vec<IpAddr>> {
    let searched = || names.search.iter().find_map(|domain| names.names.get(&format!("{name}.{domain}")));
    lookup_exact(names, name).or_else(searched)
}

fn lookup_exact<'n>(names: &'n DnsNames, name: &str) -> Option<&'n Vec<IpAddr>> {
    names.names.get(name)
}

/// The name in lower case without its last dot.
fn plain(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// The widest search domain that a name is in: that of the mesh.
fn domain<'n>(names: &'n DnsNames, name: &str) -> Option<&'n str> {
    let within = |domain: &&str| name == *domain || name.strip_suffix(*domain).is_some_and(|rest| rest.ends_with('.'));
    names.search.iter().map(String::as_str).filter(within).min_by_key(|domain| domain.len())
}

/// How the control plane is asked about the name of a query; `None` when no addresses are asked for.
pub(super) fn host(query: &Query) -> Option<String> {
    let addresses = matches!(query.query_type, RecordType::A | RecordType::AAAA | RecordType::ANY);
    Some(plain(&query.name)).filter(|name| addresses && !name.is_empty())
}

/// Whether a name is in the mesh's domain, or such as is completed by a search domain (`orders`, `orders.shop`,
/// `orders.shop.svc`). Everything else is the world's at first, and costs the control plane nothing.
pub(super) fn is_likely_of_the_mesh(names: &DnsNames, query: &Query) -> bool {
    let name = plain(&query.name);
    let labels = name.split('.').count();
    let last = name.rsplit('.').next().unwrap_or_default();
    let begun = labels == 3 && names.search.iter().any(|domain| domain.split('.').next() == Some(last));
    !names.search.is_empty() && (labels <= 2 || begun || domain(names, &name).is_some())
}

/// The code for a name that nobody knows where nobody else can be asked: what is in the mesh's domain does not exist.
pub(super) fn unknown(names: &DnsNames, query: &Query) -> ResponseCode {
    match domain(names, &plain(&query.name)) {
        Some(_) => ResponseCode::NXDomain,
        None => ResponseCode::Refused,
    }
}

/// What is said of a name of the mesh's domain that the control plane does not know either: there is no such name. It is not
/// told to anybody else.
pub(super) fn absent(names: &DnsNames, query: &Query) -> Option<Message> {
    let name = plain(&query.name);
    domain(names, &name)?;
    let mut message = blank(ResponseCode::NXDomain);
    message.metadata.authoritative = true;
    let ttl = u32::try_from(names.ttl.as_secs()).unwrap_or(u32::MAX).min(MAX_NEGATIVE);
    message.add_authority(authority(names, &name, &query.name, ttl));
    Some(message)
}

/// Seconds that "there is no such name" may be kept: it may be there any moment, as when the control plane comes back.
const MAX_NEGATIVE: u32 = 5;

/// For how long "there is nothing" holds.
fn authority(names: &DnsNames, name: &str, asked: &Name, ttl: u32) -> Record {
    let zone = domain(names, name).and_then(|zone| Name::from_ascii(zone).ok()).unwrap_or_else(|| asked.clone());
    let contact = zone.prepend_label("hostmaster").unwrap_or_else(|_| zone.clone());
    let soa = SOA::new(zone.clone(), contact, 1, 3600, 600, 86_400, ttl);
    let mut owner = zone;
    owner.set_fqdn(true);
    Record::from_rdata(owner, ttl, RData::SOA(soa))
}
