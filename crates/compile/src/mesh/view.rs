//! The local workloads of a proxy, each with its own view of the mesh.

use super::{complain, locality::Locality};
use crate::{Context, LocalWorkload, backends::Caller, snapshot::ListenerName};
use selvedge_model::{Code, Workload};
use selvedge_wire::spiffe::SpiffeId;
use std::{collections::BTreeSet, sync::Arc};

/// A local workload and what is known of it.
pub(super) struct View<'a> {
    pub(super) local: &'a LocalWorkload,
    pub(super) workload: &'a Workload,
    pub(super) identity: Option<SpiffeId>,
    pub(super) caller: Arc<Caller>,
}

impl View<'_> {
    pub(super) fn name(&self, section: &str) -> ListenerName {
        ListenerName {
            kind: "Workload",
            namespace: self.local.namespace.clone(),
            name: self.local.workload.clone(),
            section: section.to_owned(),
        }
    }
}

/// Those of which anything is known, by namespace and name; the locality of each is remembered for its clusters.
pub(super) fn all<'a>(cx: &mut Context<'a>, locals: &'a [LocalWorkload]) -> Vec<View<'a>> {
    let mut sorted: Vec<&'a LocalWorkload> = locals.iter().collect();
    sorted.sort_by(|a, b| (&a.namespace, &a.workload).cmp(&(&b.namespace, &b.workload)));
    let mut seen = BTreeSet::new();
    let mut views = Vec::with_capacity(sorted.len());
    for local in sorted {
        let (namespace, name) = (local.namespace.as_str(), local.workload.as_str());
        if !seen.insert((namespace, name)) {
            complain(
                &mut cx.report,
                namespace,
                name,
                Code::ListenerConflict,
                "the proxy was told of this workload twice",
            );
            continue;
        }
        let Some(workload) = found(cx, local) else { continue };
        let identity = cx.mesh.members.identity(workload);
        if let (Some(kept), Some(id)) = (&cx.options.kept, &identity)
            && !kept.contains(id)
        {
            let message = unproven(kept, id);
            complain(&mut cx.report, namespace, name, Code::MissingIdentity, &message);
        }
        let caller = Arc::new(Caller { identity: identity.clone(), netns: local.netns });
        let options = cx.options;
        let locality = Locality {
            zone: workload.spec.zone.as_deref().or(options.zone.as_deref()),
            region: workload.spec.region.as_deref().or(options.region.as_deref()),
        };
        cx.mesh.localities.entry(Arc::clone(&caller)).or_insert(locality);
        views.push(View { local, workload, identity, caller });
    }
    views
}

/// What to do about a workload whose proxy cannot prove its identity.
fn unproven(kept: &BTreeSet<SpiffeId>, id: &SpiffeId) -> String {
    let has: Vec<&str> = kept.iter().map(SpiffeId::as_str).collect();
    let (namespace, account) = (id.namespace().unwrap_or_default(), id.account().unwrap_or_default());
    let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
    format!(
        "its proxy has no certificate for {id} (it has {has}), so that it takes and makes no connections by mutual TLS: start it \
         with --identity {namespace}/{account} too, or correct `serviceAccount` or the trust domain"
    )
}

fn found<'a>(cx: &mut Context<'a>, local: &'a LocalWorkload) -> Option<&'a Workload> {
    let (namespace, name) = (local.namespace.as_str(), local.workload.as_str());
    if let Some(workload) = cx.mesh.members.get(namespace, name) {
        return Some(workload);
    }
    // It is there, but has lost its address, which it has been told.
    let lost = cx.index.workloads().get(namespace, name).is_some();
    if !lost && let Some(own) = &local.own {
        return Some(own);
    }
    let message = if lost {
        "nothing is served for it while another Workload has its address"
    } else {
        "it does not exist, so that its proxy serves nothing: create it, or let it register itself"
    };
    complain(&mut cx.report, namespace, name, Code::UnknownWorkload, message);
    None
}
