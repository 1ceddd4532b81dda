//! RequestHeaderModifier and ResponseHeaderModifier.

use http::HeaderMap;
use selvedge_compile::snapshot::HeaderChange;

/// Set, then add, then remove, as the Gateway API lists them.
pub(super) fn apply(change: &HeaderChange, headers: &mut HeaderMap) {
    for (name, value) in &change.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &change.add {
        headers.append(name.clone(), value.clone());
    }
    for name in &change.remove {
        headers.remove(name);
    }
}
