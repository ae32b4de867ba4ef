//! By which interface the backends send that see their clients' addresses: one byte for each backend, for the check of replies.

use crate::id::{BackendId, InterfaceId};
use crate::routing::Routing;
use crate::service::{ServiceKey, ServiceTable};

/// The interfaces by which replies come in, by the slots of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReversePaths(Box<[u8]>);

impl ReversePaths {
    /// Looks up the route of every backend whose clients' addresses are preserved.
    pub fn build(services: &ServiceTable, routing: &Routing) -> Self {
        if services.reply_sources().next().is_none() {
            return Self::default();
        }
        let mut slots = Vec::new();
        for backend in services.backends().iter() {
            let slot = backend.id.slot();
            slots.resize(slots.len().max(slot + 1), NOT_KNOWN);
            let Some(service) = services.service(backend.service) else { continue };
            let protocol = service.spec.protocol;
            if services.is_reply_source(&ServiceKey { protocol, addr: backend.addr, port: backend.port }) {
                slots[slot] =
                    routing.only_reverse_path(backend.addr).map_or(NOT_KNOWN, |interface| interface.0);
            }
        }
        Self(slots.into())
    }

    /// Whether all that the backend sends comes in by this interface. False also where its route has several interfaces, or if it
    /// was removed: then the route itself tells ([`Routing::is_reverse_path`]).
    #[inline]
    pub fn is_only(&self, backend: BackendId, ingress: InterfaceId) -> bool {
        self.0.get(backend.slot()) == Some(&ingress.0)
    }
}

/// No interface: there are fewer.
const NOT_KNOWN: u8 = u8::MAX;
const _: () = assert!(InterfaceId::MAX <= NOT_KNOWN as usize, "no interface has this number");
