//! What tables are made from: the description that every gateway in memory follows, and the model too. Tests change
//! it and publish again.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::{InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec, ServiceSpec};
use flowgate_tables::{PortSet, Routing, ServiceTable, SnatPool, SourceClassifier, Tables};
use flowgate_wire::MacAddr;

/// Services and network.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) interfaces: Vec<InterfaceSpec>,
    pub(crate) routes: Vec<RouteSpec>,
    pub(crate) neighbours: Vec<NeighbourSpec>,
    pub(crate) snat_ports: PortSet,
    pub(crate) service_cidrs: Vec<ipnet::IpNet>,
}

impl World {
    /// The tables that follow `previous`.
    pub(crate) fn tables(&self, previous: &Tables) -> Tables {
        let specs = self.services.iter().cloned().map(Arc::new).collect();
        let (services, errors) = ServiceTable::build(&previous.services, specs, self.service_cidrs.clone());
        assert!(errors.is_empty(), "{errors:?}");
        let routing =
            Routing::build(&previous.routing, self.interfaces.clone(), &self.routes, &self.neighbours)
                .unwrap();
        let addresses: Vec<Vec<IpAddr>> = self.interfaces.iter().map(|i| i.addresses.clone()).collect();
        Tables {
            generation: previous.generation + 1,
            services: Arc::new(services),
            routing: Arc::new(routing),
            snat: Arc::new(SnatPool::new(&addresses, &self.snat_ports)),
            sources: Arc::new(SourceClassifier::new(vec![], addresses.concat())),
            reverse_paths: Arc::default(),
        }
        .with_reverse_paths(previous)
    }
}

/// A route by one way.
pub(crate) fn route(prefix: &str, interface: usize, via: Option<&str>) -> RouteSpec {
    let via = via.map(|via| via.parse().unwrap());
    let hop = RouteHopSpec { interface, via, weight: 1 };
    RouteSpec { prefix: prefix.parse().unwrap(), hops: vec![hop], metric: 0 }
}

/// A neighbour; without a host it is known but not resolved.
pub(crate) fn neighbour(interface: usize, addr: IpAddr, host: Option<u8>) -> NeighbourSpec {
    let mac = host.map(|host| MacAddr([4, 0, 0, 0, 0, host]));
    NeighbourSpec { interface, addr, mac, has_failed: false }
}
