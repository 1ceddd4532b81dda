//! Rules of BackendTLSPolicy.

use super::{Report, hostname, wildcard_hostname};
use crate::backend_tls::{BackendTlsPolicy, SubjectAltName, SubjectAltNameType};
use crate::diagnostic::Code;
use crate::field_path::At;

pub(super) fn policy(report: &mut Report, policy: &BackendTlsPolicy, spec: &At<'_>) {
    let targets = spec.field("targetRefs");
    for (index, target) in policy.spec.target_refs.iter().enumerate() {
        let same = |other: &&crate::backend_tls::PolicyTargetReference| {
            (&other.group, &other.kind, &other.name) == (&target.group, &target.kind, &target.name)
        };
        if let Some(other) = policy.spec.target_refs[..index].iter().find(same) {
            let item = targets.index(index);
            if target.section_name.is_none() || other.section_name.is_none() {
                report.error(
                    Code::DuplicateItem,
                    &item,
                    "several references to one target must all have `sectionName`",
                );
            } else if policy.spec.target_refs[..index].contains(target) {
                report.error(Code::DuplicateItem, &item, "the same reference is given twice");
            }
        }
    }
    let validation = &policy.spec.validation;
    let at = spec.field("validation");
    report.check(Code::InvalidHostname, &at.field("hostname"), hostname(&validation.hostname));
    match (validation.ca_certificate_refs.is_empty(), &validation.well_known_ca_certificates) {
        (true, None) => {
            let message = "one of `caCertificateRefs` and `wellKnownCACertificates` must be given";
            report.error(Code::MissingField, &at, message);
        }
        (false, Some(_)) => {
            let message = "`caCertificateRefs` and `wellKnownCACertificates` exclude each other";
            report.error(Code::ConflictingFields, &at.field("wellKnownCACertificates"), message);
        }
        _ => {}
    }
    super::gateway::options(report, Some(&policy.spec.options), &spec.field("options"));
    let names = at.field("subjectAltNames");
    for (index, name) in validation.subject_alt_names.iter().enumerate() {
        subject_alt_name(report, name, &names.index(index));
    }
}

fn subject_alt_name(report: &mut Report, name: &SubjectAltName, at: &At<'_>) {
    let fields = [
        ("hostname", SubjectAltNameType::Hostname, name.hostname.is_some()),
        ("uri", SubjectAltNameType::Uri, name.uri.is_some()),
    ];
    for (field, kind, set) in fields {
        if (kind == name.name_type) != set {
            let message = if set { "does not fit the type" } else { "must be set for this type" };
            report.error(Code::InconsistentUnion, &at.field(field), format!("`{field}` {message}"));
        }
    }
    if let Some(hostname) = &name.hostname {
        report.check(Code::InvalidHostname, &at.field("hostname"), wildcard_hostname(hostname));
    }
    if let Some(uri) = &name.uri
        && !uri.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty())
    {
        report.error(Code::WrongFormat, &at.field("uri"), format!("`{uri}` is not an absolute URI with a host"));
    }
}
