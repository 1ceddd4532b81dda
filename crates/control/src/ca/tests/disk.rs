//! A store in a file.

use super::*;
use std::{os::unix::fs::PermissionsExt, path::Path};

async fn open_file(folder: &Path, hand: &Hand) -> Result<Ca, Error> {
    let store = File::open(&folder.join("ca.redb"))?;
    let key = Key::File(folder.join("ca.key"));
    Ca::open(Arc::new(store), &key, options(Lifetimes::default()), hand.clock()).await
}

#[tokio::test]
async fn a_store_in_a_file() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (path, key) = (folder.path().join("ca.redb"), folder.path().join("ca.key"));
    let ca = open_file(folder.path(), &hand).await.unwrap();
    let roots = ca.bundle().roots.clone();
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    for file in [&path, &key] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let second = open_file(folder.path(), &hand).await;
    assert!(matches!(second, Err(Error::Store(StoreError::Locked { .. }))), "{second:?}");
    drop(ca);
    let ca = open_file(folder.path(), &hand).await.unwrap();
    assert_eq!(ca.bundle().roots, roots);
    ca.join(&token, None, &new_csr()).await.unwrap();
    drop(ca);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open_to_all = open_file(folder.path(), &hand).await.unwrap_err().to_string();
    assert!(open_to_all.contains("chmod 600"), "{open_to_all}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let right = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let missing = open_file(folder.path(), &hand).await;
    assert!(matches!(missing, Err(Error::Store(StoreError::KeyMissing { .. }))), "{missing:?}");
    assert!(!key.exists(), "a missing key is not made anew");
    std::fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = open_file(folder.path(), &hand).await;
    assert!(matches!(wrong, Err(Error::Store(StoreError::WrongKey { .. }))), "{wrong:?}");
    std::fs::write(&key, "not a key").unwrap();
    assert!(matches!(open_file(folder.path(), &hand).await, Err(Error::Store(StoreError::Key { .. }))));
    std::fs::write(&key, right).unwrap();
    open_file(folder.path(), &hand).await.unwrap();
}

/// Whatever happens to the bytes of the file, it is an error that says so, or the records are intact.
#[tokio::test]
async fn a_damaged_file() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let path = folder.path().join("ca.redb");
    let ca = open_file(folder.path(), &hand).await.unwrap();
    let roots = ca.bundle().roots.clone();
    drop(ca);
    let right = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for turn in 0..40_usize {
        let mut bytes = right.clone();
        match turn {
            0 => bytes = b"something else".to_vec(),
            1 => bytes.truncate(100),
            2 => bytes.truncate(right.len() / 2),
            _ => {
                // Within what is used; the rest of the file is empty pages.
                let place = turn * 4096 / 7 % right.len();
                bytes[place] ^= 0xff;
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match open_file(folder.path(), &hand).await {
            Ok(ca) => assert_eq!(ca.bundle().roots, roots, "turn {turn}"),
            Err(Error::Store(StoreError::Corrupt { .. } | StoreError::Newer { .. } | StoreError::WrongKey { .. }))
            | Err(Error::Damaged { .. }) => refused += 1,
            Err(other) => panic!("turn {turn}: {other:?}"),
        }
    }
    assert!(refused >= 3, "{refused}");
}

#[tokio::test]
async fn a_store_of_a_newer_version() {
    let store = Arc::new(Memory::new());
    let put = vec![("format".to_owned(), b"2".to_vec())];
    store.write(store::Batch { put, ..Default::default() }).await.unwrap();
    let newer = open(&store, &Hand::new()).await;
    assert!(matches!(newer, Err(Error::Store(StoreError::Newer { .. }))), "{newer:?}");
}
