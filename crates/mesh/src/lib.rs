//! What only a member of a mesh needs: keeping its identity fresh, capturing a workload's traffic, names.

pub mod capture;
pub mod spaces;
