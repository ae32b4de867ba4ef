//! Adoption: flows that an earlier process left behind go on in this one.
//!
//! Ids of Services and backends are assigned anew by each process, so the Service is found by the address and port that the
//! client used, and the backend by the address and port that it replies from. A flow whose Service or backend is gone is
//! treated like one of a removed backend.

use flowgate_flow::{Adopted, AffinityTable, FlowAddress, FlowTable, Flows, RestoredFlow};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{BackendId, Frontend, ServiceTable};

/// What was adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Flows.
    pub flows: usize,
    /// How many of them have lost their Service or backend.
    pub without_backend: usize,
    /// Session affinity bindings.
    pub bindings: usize,
    /// Half flows that were removed: the process had ended while it inserted or removed one.
    pub cleared: usize,
}

/// Adopts the flows of an earlier process. The caller must be the only user of the tables: no worker runs yet.
pub fn adopt(flows: &Flows, affinity: &AffinityTable, services: &ServiceTable) -> Adoption {
    let [v4, v6] = [adopt_family(&flows.v4, affinity, services), adopt_family(&flows.v6, affinity, services)];
    Adoption {
        flows: v4.flows + v6.flows,
        without_backend: v4.without_backend + v6.without_backend,
        bindings: affinity.len(),
        cleared: v4.cleared + v6.cleared,
    }
}

fn adopt_family<A: FlowAddress>(
    flows: &FlowTable<A>,
    affinity: &AffinityTable,
    services: &ServiceTable,
) -> Adoption {
    let mut without_backend = 0;
    let Adopted { flows, cleared } = flows.adopt(|flow| {
        let found = frontend_of(flow, services).and_then(|frontend| {
            let id = backend_of(flow, frontend, services)?;
            if frontend.affinity.is_some() {
                let client = (flow.original.src.into(), frontend.service.0);
                // Affinity is not stored itself: the client's youngest flow says to which backend it was bound.
                affinity.restore(client, id.to_bits(), flow.last_seen);
            }
            Some(id)
        });
        // Not removed here: the sweep ends it as it ends flows of any removed backend, with the same deadline.
        without_backend += usize::from(found.is_none());
        found.unwrap_or(BackendId::NONE).to_bits()
    });
    Adoption { flows, without_backend, bindings: 0, cleared }
}

fn frontend_of<'a, A: FlowAddress>(
    flow: &RestoredFlow<A>,
    services: &'a ServiceTable,
) -> Option<&'a Frontend> {
    let original = &flow.original;
    services.frontend(&ServiceKey {
        protocol: original.protocol,
        addr: original.dst.into(),
        port: original.dst_port,
    })
}

fn backend_of<A: FlowAddress>(
    flow: &RestoredFlow<A>,
    frontend: &Frontend,
    services: &ServiceTable,
) -> Option<BackendId> {
    services.backends().find(frontend.service, flow.reply.src.into(), flow.reply.src_port)
}
