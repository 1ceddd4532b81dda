//! An intermediate of another CA, from files.

use super::*;
use std::path::Path;

/// What `openssl` or Vault would write.
fn write_files(folder: &Path, root: &authority::Authority, root_file: bool) -> Files {
    write_files_of(folder, root, root_file, (2020, 2050))
}

/// From the beginning of one year until that of another.
fn write_files_of(folder: &Path, root: &authority::Authority, root_file: bool, years: (i32, i32)) -> Files {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let certificate = root.sign_foreign(&params, &key);
    let pem = |der: &[u8]| {
        use base64::Engine;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let files = Files {
        chain: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        roots: root_file.then(|| folder.join("ca.crt")),
    };
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    match &files.roots {
        Some(path) => {
            std::fs::write(path, pem(root.certificate())).unwrap();
            std::fs::write(&files.chain, pem(&certificate)).unwrap();
        }
        None => std::fs::write(&files.chain, pem(&certificate) + &pem(root.certificate())).unwrap(),
    }
    files
}

#[tokio::test]
async fn an_intermediate_from_files() {
    let (folder, hand, store) = (tempfile::tempdir().unwrap(), Hand::new(), Arc::new(Memory::new()));
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let first = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let second = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let files = write_files(folder.path(), &first, true);
    let with = Options { files: Some(files), ..options(Lifetimes::default()) };
    let ca = Ca::open(Arc::clone(&store) as _, &passphrase(), with.clone(), hand.clock()).await.unwrap();
    let issue = || ca.issue_own(&id("orders"), &new_csr()).unwrap().leaf.chain;
    assert_eq!(
        (issue()[2].clone(), ca.bundle().roots.clone()),
        (first.certificate().clone(), vec![first.certificate().clone()])
    );
    verifies(&issue()[..2], &ca.bundle(), hand.now()).unwrap();
    assert!(matches!(ca.rotate(Rotate::Intermediate).await, Err(Error::FromFiles)));

    let before = issue()[1].clone();
    write_files(folder.path(), &first, true);
    ca.tick().await.unwrap();
    assert_ne!(issue()[1], before, "an intermediate of the same root is used at once");
    let alarms = || ca.expiries().iter().map(|e| (e.name(), e.alarm)).collect::<Vec<_>>();
    assert_eq!(
        (ca.files_unusable(), alarms()),
        (Some(false), vec![("root", Alarm::None), ("intermediate", Alarm::None)])
    );
    std::fs::write(folder.path().join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    ca.tick().await.unwrap();
    assert_eq!(ca.files_unusable(), Some(true), "until they fit again");
    write_files_of(folder.path(), &first, true, (2020, 2021));
    ca.tick().await.unwrap();
    assert_eq!((ca.files_unusable(), alarms()[1].1), (Some(true), Alarm::None), "one that has ended is not taken");
    verifies(&issue()[..2], &ca.bundle(), hand.now()).unwrap();

    write_files(folder.path(), &second, true);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots.len(), 2);
    assert_eq!(&issue()[2], first.certificate(), "nodes must know the new root before it counts");
    hand.forward(24 * HOUR);
    ca.tick().await.unwrap();
    assert_eq!(&issue()[2], second.certificate());
    hand.forward(26 * HOUR);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots.len(), 2, "the clock may be wrong");
    hand.forward(HOUR);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots, [second.certificate().clone()]);

    let chain = issue()[..2].to_vec();
    let own =
        Ca::open(Arc::clone(&store) as _, &passphrase(), options(Lifetimes::default()), hand.clock()).await.unwrap();
    verifies(&chain, &own.bundle(), hand.now()).unwrap();
    assert_eq!(own.bundle().roots.len(), 2, "back to an own root, with the former one in the bundle");
}

/// Control planes that share files: what one of them stores does not bring the other's new intermediate forward.
#[tokio::test]
async fn a_new_root_from_files_waits_at_all_control_planes() {
    let (hand, store) = (Hand::new(), Arc::new(Memory::new()));
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let first = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let second = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let (folder, leads) = (tempfile::tempdir().unwrap(), tokio::sync::watch::Sender::new(true));
    let with = Options { files: Some(write_files(folder.path(), &first, true)), ..options(Lifetimes::default()) };
    let shared = async |leads: &tokio::sync::watch::Sender<bool>| {
        let (store, clock) = (Arc::clone(&store) as _, hand.clock());
        Ca::open_shared(store, &passphrase(), with.clone(), clock, leads.subscribe()).await.unwrap()
    };
    let one = shared(&leads).await;
    let two = shared(&tokio::sync::watch::Sender::new(false)).await;
    let root = |ca: &Ca| ca.issue_own(&id("orders"), &new_csr()).unwrap().leaf.chain[2].clone();
    write_files(folder.path(), &second, true);
    for ca in [&one, &two, &one] {
        ca.tick().await.unwrap();
    }
    one.revoke_identity(&id("cart")).await.unwrap();
    two.tick().await.unwrap();
    assert_eq!((root(&one), root(&two)), (first.certificate().clone(), first.certificate().clone()));
    assert_eq!(two.bundle(), one.bundle());
    hand.forward(25 * HOUR);
    for ca in [&one, &two] {
        ca.tick().await.unwrap();
    }
    assert_eq!((root(&one), root(&two)), (second.certificate().clone(), second.certificate().clone()));
}

#[tokio::test]
async fn files_that_cannot_be_used() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let root = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let files = write_files(folder.path(), &root, false);
    let open = async |files: &Files| {
        let with = Options { files: Some(files.clone()), ..options(Lifetimes::default()) };
        Ca::open(Arc::new(Memory::new()), &passphrase(), with, hand.clock())
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    open(&files).await.unwrap();
    let chain = std::fs::read_to_string(&files.chain).unwrap();
    let leaf_only = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    std::fs::write(&files.chain, leaf_only).unwrap();
    assert!(open(&files).await.unwrap_err().contains("append the root"));
    let wrong_root = Files { roots: Some(folder.path().join("ca.crt")), ..files.clone() };
    assert!(open(&wrong_root).await.unwrap_err().contains("No such file"));
    std::fs::write(&files.chain, "nothing").unwrap();
    assert!(open(&files).await.unwrap_err().contains("there is no certificate"));
    std::fs::write(&files.chain, chain).unwrap();
    std::fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(open(&files).await.unwrap_err().contains("do not belong together"));
    std::fs::write(&files.key, "").unwrap();
    assert!(open(&files).await.unwrap_err().contains("no private key"));
}
