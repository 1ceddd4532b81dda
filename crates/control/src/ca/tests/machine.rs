//! The state machine, without IO.

use super::*;
use x509_parser::{extensions::GeneralName, prelude::FromDer, revocation_list};

#[test]
fn an_svid_is_as_the_standard_wants_it() {
    let now = at(START);
    let core = Core::create(DOMAIN, Lifetimes::default(), None, now).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, now).unwrap();
    assert_eq!((leaf.not_before, leaf.not_after), (START - 120, START + 24 * HOUR));
    assert_eq!(leaf.chain.len(), 2);
    verifies(&leaf.chain, core.bundle(), now).unwrap();
    let (_, certificate) = parse_x509_certificate(&leaf.chain[0]).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://mesh.example/ns/shop/sa/orders")]);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth);
    assert!(!certificate.is_ca());
    assert_eq!(certificate.raw_serial(), leaf.serial.as_bytes());
    let (_, intermediate) = parse_x509_certificate(&leaf.chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    let usage = intermediate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    assert_eq!(intermediate.validity().not_after.timestamp(), i64::try_from(START + 365 * 24 * HOUR).unwrap());
    let short = core.issue(&id("orders"), &request, Some(Duration::from_secs(5)), now).unwrap();
    assert_eq!(short.not_after, START + 5);
    let foreign = SpiffeId::workload("other.example", "shop", "orders").unwrap();
    assert!(matches!(core.issue(&foreign, &request, None, now), Err(Error::Foreign { .. })));
    let domain: SpiffeId = "spiffe://mesh.example".parse().unwrap();
    assert!(matches!(core.issue(&domain, &request, None, now), Err(Error::Foreign { .. })));
}

/// Nodes renew at half of their life and take a bundle with it; each pair of nodes must accept each other at any time,
/// through many generations of intermediates and roots, also across restarts of the CA.
#[test]
fn rotation_never_parts_nodes() {
    let mut core = Core::create(DOMAIN, quick(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        let leaf = core.issue(&id("orders"), &request, None, at(START)).unwrap();
        nodes.push((leaf, Arc::clone(core.bundle())));
    }
    let (mut roots, mut intermediates) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let mut sequence = core.bundle().sequence;
    for second in (0..30_000).step_by(10) {
        let now = at(START + second);
        core.tick(now, true).unwrap();
        assert!(core.bundle().sequence >= sequence);
        sequence = core.bundle().sequence;
        if second % 700 == 0 {
            core = Core::restore(&core.save(), DOMAIN, quick(), None, now).unwrap();
        }
        let turn = usize::try_from(second / 10 % 5).unwrap();
        nodes[turn] = (core.issue(&id("orders"), &request, None, now).unwrap(), Arc::clone(core.bundle()));
        for (leaf, bundle) in &nodes {
            for (leaf, bundle) in [(leaf, &nodes[turn].1), (&nodes[turn].0, bundle)] {
                verifies(&leaf.chain, bundle, now).unwrap_or_else(|why| panic!("second {second}: {why}"));
            }
        }
        roots.extend(core.bundle().roots.iter().map(|r| fingerprint(r)));
        intermediates.insert(fingerprint(&nodes[0].0.chain[1]));
        assert!(core.bundle().roots.len() <= 2 && core.authorities().len() <= 6, "{:?}", core.authorities());
    }
    assert!(roots.len() >= 8 && intermediates.len() >= 30, "{} roots, {}", roots.len(), intermediates.len());
}

#[test]
fn rotation_by_command() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let first = core.bundle().roots.clone();
    core.rotate(Rotate::Intermediate, at(START)).unwrap();
    assert_eq!((core.bundle().roots.clone(), core.authorities().len()), (first.clone(), 3));
    core.rotate(Rotate::Root { at_once: false }, at(START + 10)).unwrap();
    assert_eq!(core.bundle().roots.len(), 2);
    assert_eq!(core.root_of_issue(at(START + 10)).unwrap(), &first[0]);
    let again = core.rotate(Rotate::Root { at_once: false }, at(START + 20));
    assert!(matches!(again, Err(Error::Rotating { at }) if at == START + 10 + 24 * HOUR), "{again:?}");
    core.tick(at(START + 10 + 24 * HOUR), true).unwrap();
    assert_ne!(core.root_of_issue(at(START + 10 + 24 * HOUR)).unwrap(), &first[0]);
    assert_eq!(core.bundle().roots.len(), 2);
    core.tick(at(START + 10 + 73 * HOUR), true).unwrap();
    assert_eq!(core.bundle().roots.len(), 1);
    core.rotate(Rotate::Root { at_once: true }, at(START + 100 * HOUR)).unwrap();
    let active = core.authorities().into_iter().filter(|a| a.root && a.phase == Phase::Active).count();
    assert_eq!((active, core.bundle().roots.len()), (1, 2));
}

/// A clock that jumps a year ahead and back, or beyond the root's end, never leaves the CA without a root or its nodes
/// without one they know.
#[test]
fn a_jumping_clock_does_not_end_the_ca() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let first = core.bundle().roots[0].clone();
    core.tick(at(START + 400 * 24 * HOUR), true).unwrap();
    core.tick(at(START + HOUR), true).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, at(START + HOUR)).unwrap();
    verifies(&leaf.chain, core.bundle(), at(START + HOUR)).unwrap();
    assert!(core.bundle().roots.contains(&first));
    let late = at(START + 4000 * 24 * HOUR);
    core.tick(late, true).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, late).unwrap();
    verifies(&leaf.chain, core.bundle(), late).unwrap();
}

#[test]
fn revocation_of_a_certificate_and_of_an_identity() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let one = core.issue(&id("orders"), &request, None, at(START)).unwrap();
    let two = core.issue(&id("orders"), &request, None, at(START)).unwrap();
    let may = |core: &Core, leaf: &Leaf, now: u64| {
        core.may_renew(&id("orders"), &leaf.serial, leaf.not_before, leaf.not_after, at(now))
    };
    core.revoke_serial(&one.serial, at(START + 10)).unwrap();
    assert!(matches!(may(&core, &one, START + 11), Err(Error::Revoked { since, .. }) if since == START + 10));
    may(&core, &two, START + 11).unwrap();
    let bundle = Arc::clone(core.bundle());
    let (_, list) = revocation_list::CertificateRevocationList::from_der(&bundle.crls[0]).unwrap();
    assert_eq!(list.iter_revoked_certificates().next().unwrap().raw_serial(), one.serial.as_bytes());
    let (_, intermediate) = parse_x509_certificate(&one.chain[1]).unwrap();
    list.verify_signature(intermediate.public_key()).unwrap();
    core.revoke_identity(&id("orders"), std::slice::from_ref(&two.serial), at(START + 20)).unwrap();
    assert!(matches!(may(&core, &two, START + 21), Err(Error::Revoked { .. })));
    let at_once = core.issue(&id("orders"), &request, None, at(START + 20)).unwrap();
    may(&core, &at_once, START + 21).unwrap();
    assert_eq!((at_once.not_before, at_once.not_after), (START + 20, START + 20 + 24 * HOUR));
    let mut again = core.clone();
    again.revoke_identity(&id("orders"), &[], at(START + 20)).unwrap();
    assert!(matches!(may(&again, &at_once, START + 21), Err(Error::Revoked { .. })), "twice in one second");
    // Of another control plane, whose clock is fast, from before the revocation; and a new one of one that is late.
    let fast = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let before = fast.issue(&id("orders"), &request, None, at(START + 19 + 120)).unwrap();
    assert!(matches!(may(&core, &before, START + 21), Err(Error::Revoked { .. })));
    let late = core.issue(&id("orders"), &request, None, at(START + 25 - 120)).unwrap();
    may(&core, &late, START + 25).unwrap();
    let usual = core.issue(&id("orders"), &request, None, at(START + 20 + 300)).unwrap();
    assert_eq!(usual.not_before, START + 20 + 180);
    let later = core.issue(&id("orders"), &request, None, at(START + 21)).unwrap();
    may(&core, &later, START + 22).unwrap();
    may(&core, &later, START + 25 * HOUR).unwrap_err();
    assert!(core.bundle().revoked.iter().all(|r| !r.concerns(&id("cart"), &later.serial, START - 120)));
    let number = core.bundle().sequence;
    // A day until the end of the last one, and seven in which one that has ended may come back.
    assert!(!core.clone().tick(at(START + 20 + 3 * 24 * HOUR), true).unwrap());
    let ended = at(START + 20 + (8 * 24 + 1) * HOUR);
    core.clone().tick(ended, false).unwrap();
    assert!(core.tick(ended, true).unwrap());
    assert!(core.bundle().revoked.is_empty() && core.bundle().crls.is_empty() && core.bundle().sequence > number);
}

#[test]
fn a_clock_that_is_set_back_for_a_moment_replaces_no_root() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let roots = core.bundle().roots.clone();
    let early = at(START - HOUR);
    core.tick(early, false).unwrap();
    assert_eq!(core.bundle().roots, roots);
    core.tick(early, true).unwrap();
    assert_ne!(core.bundle().roots, roots, "it was made by a clock that was wrong");
    core.tick(at(START + 30 * 24 * HOUR), true).unwrap();
    assert!(core.bundle().roots.contains(&roots[0]), "or this one was: others have certificates under it");
}
