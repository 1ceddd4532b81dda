//! Rules of ReferenceGrant.

use super::Report;
use crate::diagnostic::{Code, nearest};
use crate::field_path::At;
use crate::gateway::ReferenceGrant;
use crate::meta::{GATEWAY_GROUP, Kind};

/// Kinds that refer to resources of other namespaces.
const FROM: [Kind; 7] = [
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
];

/// Kinds that they refer to.
const TO: [Kind; 3] = [Kind::Service, Kind::Secret, Kind::ConfigMap];

/// Grants may be for other implementations too, so that what is not known here is only doubted.
pub(super) fn grant(report: &mut Report, grant: &ReferenceGrant, spec: &At<'_>) {
    let from = spec.field("from");
    for (index, one) in grant.spec.from.iter().enumerate() {
        let item = from.index(index);
        known(report, (&one.group, &one.kind), &FROM, "refers to other namespaces", &item);
        if one.namespace == grant.metadata.namespace {
            let message = "references within one namespace need no grant; name the namespace of those that refer";
            report.warning(Code::NoEffect, &item.field("namespace"), message);
        }
    }
    let to = spec.field("to");
    for (index, one) in grant.spec.to.iter().enumerate() {
        known(report, (&one.group, &one.kind), &TO, "is referred to from other namespaces", &to.index(index));
    }
}

fn known(report: &mut Report, (group, kind): (&str, &str), kinds: &[Kind], what: &str, at: &At<'_>) {
    let named = kinds.iter().find(|known| known.name() == kind);
    let core = "an empty group (`group: \"\"`)";
    match named {
        Some(known) if known.group() == group => {}
        Some(known) => {
            let wanted = if known.group().is_empty() { core.to_owned() } else { format!("`{GATEWAY_GROUP}`") };
            let message =
                format!("`{group}` is not the group of {kind}, so that the grant allows nothing; write {wanted}");
            report.warning(Code::UnsupportedReference, &at.field("group"), message);
        }
        None => {
            let near = nearest(kind, kinds.iter().map(|known| known.name()));
            let names: Vec<&str> = kinds.iter().map(|known| known.name()).collect();
            let help = near
                .map_or_else(|| format!("{} are known", names.join(", ")), |near| format!("did you mean `{near}`?"));
            let message = format!("`{kind}` is not a kind that {what} here, so that the grant allows nothing; {help}");
            report.warning(Code::UnsupportedReference, &at.field("kind"), message);
        }
    }
}
