//! What the flows of an earlier process mean in the tables of this one. Never reads a clock.
//!
//! Numbers of Services and backends begin anew with each process, so both are found by what a client aims
//! at and by what the backend answers from. A flow whose Service or backend is gone is treated as one of a
//! removed backend.

use flowgate_flow::{Adopted, AffinityTable, FlowAddress, FlowTable, Flows, RestoredFlow};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{BackendId, Frontend, ServiceTable};

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Flows that go on.
    pub flows: usize,
    /// Those of them whose Service or backend is gone.
    pub without_backend: usize,
    /// Clients that stay with their backend.
    pub bindings: usize,
    /// Halves of flows that an interrupted step had left.
    pub cleared: usize,
}

/// Takes over the flows of an earlier process. Must have the tables alone: before any worker runs.
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
    let Adopted { flows, cleared } = flows.adopt(|kept| {
        let found = frontend_of(kept, services).and_then(|frontend| {
            let id = backend_of(kept, frontend, services)?;
            if frontend.affinity.is_some() {
                let client = (kept.original.src.into(), frontend.service.0);
                affinity.restore(client, id.to_bits(), kept.last_seen);
            }
            Some(id)
        });
        without_backend += usize::from(found.is_none());
        found.unwrap_or(BackendId::NONE).to_bits()
    });
    Adoption { flows, without_backend, bindings: 0, cleared }
}

fn frontend_of<'a, A: FlowAddress>(
    kept: &RestoredFlow<A>,
    services: &'a ServiceTable,
) -> Option<&'a Frontend> {
    let aimed_at = &kept.original;
    services.frontend(&ServiceKey {
        protocol: aimed_at.protocol,
        addr: aimed_at.dst.into(),
        port: aimed_at.dst_port,
    })
}

fn backend_of<A: FlowAddress>(
    kept: &RestoredFlow<A>,
    frontend: &Frontend,
    services: &ServiceTable,
) -> Option<BackendId> {
    services.backends().find(frontend.service, kept.reply.src.into(), kept.reply.src_port)
}
