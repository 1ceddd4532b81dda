//! Maps of things that live as long as somebody uses them, found again by their key.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Values by key, kept by their users.
#[derive(Debug)]
pub(super) struct Kept<K, V>(Mutex<BTreeMap<K, Weak<V>>>);

/// From so many on, what is not used any more is forgotten each time that the map has doubled.
const SWEEP: usize = 64;

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone, V> Kept<K, V> {
    /// The value in use under this key, else a new one.
    pub fn get<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let mut map = lock(&self.0);
        if let Some(kept) = map.get(key).and_then(Weak::upgrade) {
            return Ok(kept);
        }
        let made = Arc::new(make()?);
        // Names come and go with the configuration, and perhaps nobody ever asks for all of them.
        if map.len() >= SWEEP && map.len().is_power_of_two() {
            map.retain(|_, weak| weak.strong_count() > 0);
        }
        map.insert(key.clone(), Arc::downgrade(&made));
        Ok(made)
    }

    pub fn get_or(&self, key: &K, make: impl FnOnce() -> V) -> Arc<V> {
        match self.get(key, || Ok::<V, std::convert::Infallible>(make())) {
            Ok(value) => value,
        }
    }

    /// All that are in use; forgets the others.
    pub fn live(&self) -> Vec<Arc<V>> {
        let mut found = Vec::new();
        lock(&self.0).retain(|_, weak| weak.upgrade().map(|v| found.push(v)).is_some());
        found
    }
}

/// Takes a lock that a panicking thread cannot have left in disorder, as nothing foreign runs under it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_forgotten_without_being_asked_for() {
        let kept = Kept::default();
        let used = kept.get_or(&0, || "used");
        for key in 1..10_000 {
            kept.get_or(&key, || "let go at once");
        }
        assert!(lock(&kept.0).len() <= SWEEP);
        assert!(Arc::ptr_eq(&used, &kept.get_or(&0, || "new")));
    }
}
