//! Maglev tables of endpoint sets. A table follows from the names and weights of its members alone, so all sets with equal
//! members share one: the ports of a Service, its traffic policies, Services that select the same pods.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flowgate_wire::L4Port;
use hashbrown::{HashMap, HashTable};

use super::Service;
use crate::maglev::{Maglev, Member, compact_table_size, slot_bytes, table_size};
use crate::spec::EndpointSpec;

/// A Maglev table and the members that it was built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LookupTable {
    members: Members,
    maglev: Maglev,
}

impl LookupTable {
    /// The position of the member for a flow with this hash; `None` when there is no member.
    #[inline]
    pub(super) fn pick(&self, maglev_hash: u32) -> Option<usize> {
        self.maglev.pick(maglev_hash)
    }

    /// Memory of the slots and of the members' names.
    pub(super) fn len_bytes(&self) -> usize {
        self.maglev.len_bytes() + size_of_val(&*self.members.names)
    }

    fn build(members: Members) -> Self {
        let names: Vec<String> = members.names.iter().map(MemberName::text).collect();
        let named: Vec<Member<'_>> = names
            .iter()
            .zip(&members.names)
            .map(|(name, member)| Member { name: name.as_bytes(), weight: member.weight })
            .collect();
        let maglev = Maglev::build_sized(&named, members.size);
        Self { members, maglev }
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.maglev.slots().len()
    }

    /// What decides with which other sets the table is shared.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }
}

/// The members of a table, ascending by address and port, with their digest and the size of their table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    digest: u64,
    names: Box<[MemberName]>,
    size: u32,
}

/// The name of an endpoint in the tables of all nodes, and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MemberName {
    addr: IpAddr,
    /// Of an address that a set has several times, each endpoint but the first has its port in its name.
    port: Option<L4Port>,
    weight: u16,
}

impl Members {
    /// With a table of the usual size. `endpoints` are ascending by address and port.
    pub(super) fn of(endpoints: &[EndpointSpec]) -> Self {
        // Named by address and not by port: so the ports of a Service, which have the same pods, share one table.
        let name = |(position, endpoint): (usize, &EndpointSpec)| {
            let before = position.checked_sub(1).and_then(|before| endpoints.get(before));
            let repeats = before.is_some_and(|before| before.addr == endpoint.addr);
            MemberName {
                addr: endpoint.addr,
                port: repeats.then_some(endpoint.port),
                weight: endpoint.weight,
            }
        };
        let names: Box<[MemberName]> = endpoints.iter().enumerate().map(name).collect();
        let mut hasher = DefaultHasher::new();
        names.hash(&mut hasher);
        Self { digest: hasher.finish(), size: table_size(names.len()), names }
    }
}

/// The sizes of all tables of one Service: once those of its distinct sets take [`SERVICE_BYTES_MAX`], the others are
/// compact. Follows from the Service's own sets alone, so it is the same on every node, whatever other Services do.
#[derive(Debug, Default)]
pub(super) struct TableSizes {
    by_digest: HashMap<u64, u32>,
    bytes: usize,
}

impl TableSizes {
    /// The size for the next set of the Service, in the order of its ports.
    pub(super) fn next(&mut self, members: &Members) -> u32 {
        let count = members.names.len();
        let bytes = &mut self.bytes;
        *self.by_digest.entry(members.digest).or_insert_with(|| {
            let full = slot_bytes(count, table_size(count));
            if *bytes + full > SERVICE_BYTES_MAX {
                return compact_table_size(count);
            }
            *bytes += full;
            table_size(count)
        })
    }

    /// Whether the table of a set that did not change has the size for the next set.
    pub(super) fn fits(&mut self, members: &Members) -> bool {
        self.next(members) == members.size
    }
}

impl MemberName {
    fn text(&self) -> String {
        match self.port {
            None => self.addr.to_string(),
            Some(port) => format!("{}:{port}", self.addr),
        }
    }
}

/// Tables by their members: those of the generation before, and those that a new one lacks.
#[derive(Debug, Default)]
pub(super) struct LookupTables {
    by_members: HashTable<usize>,
    all: Vec<Lookup>,
}

#[derive(Debug)]
enum Lookup {
    Built(Arc<LookupTable>),
    Missing(Members),
}

impl Lookup {
    fn members(&self) -> &Members {
        match self {
            Self::Built(table) => &table.members,
            Self::Missing(members) => members,
        }
    }
}

impl LookupTables {
    /// The tables of all sets of these Services.
    pub(super) fn of<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let mut tables = Self::default();
        for set in services.flat_map(|service| &service.backend_sets) {
            let members = &set.lookup_table.members;
            if tables.find(members).is_none() {
                tables.add(Lookup::Built(Arc::clone(&set.lookup_table)));
            }
        }
        tables
    }

    /// The number of the table for these members, with the next size of their Service; it need not be built yet.
    pub(super) fn number_for(&mut self, mut members: Members, sizes: &mut TableSizes) -> usize {
        members.size = sizes.next(&members);
        self.find(&members).unwrap_or_else(|| self.add(Lookup::Missing(members)))
    }

    /// All tables by number, after those that are missing have been built.
    pub(super) fn built(self) -> Vec<Arc<LookupTable>> {
        let slots = self.all.iter().map(|lookup| match lookup {
            Lookup::Built(_) => 0,
            Lookup::Missing(members) => u64::from(members.size),
        });
        let threads = match slots.sum::<u64>() {
            ..PARALLEL_BUILD_MIN_SLOTS => 1,
            _ => thread::available_parallelism().map_or(1, NonZero::get),
        };
        build_on(threads, self.all)
    }

    fn find(&self, members: &Members) -> Option<usize> {
        self.by_members.find(members.digest, |&number| self.all[number].members() == members).copied()
    }

    fn add(&mut self, lookup: Lookup) -> usize {
        let number = self.all.len();
        let digest = lookup.members().digest;
        self.all.push(lookup);
        let all = &self.all;
        self.by_members.insert_unique(digest, number, |&number| all[number].members().digest);
        number
    }
}

/// Builds what is missing on this many threads, this one included; each takes the next one when it is done with the last.
fn build_on(threads: usize, lookups: Vec<Lookup>) -> Vec<Arc<LookupTable>> {
    let next = AtomicUsize::new(0);
    let build = || {
        let mut built = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            match lookups.get(number) {
                None => return built,
                Some(Lookup::Built(table)) => built.push((number, Arc::clone(table))),
                Some(Lookup::Missing(members)) => {
                    built.push((number, Arc::new(LookupTable::build(members.clone()))));
                }
            }
        }
    };
    let mut built = thread::scope(|scope| {
        // Where the system has no further thread, those that there are do the work.
        let spawn = |_| thread::Builder::new().name("flowgate-maglev".to_owned()).spawn_scoped(scope, build);
        let others: Vec<_> = (1..threads).map_while(|other| spawn(other).ok()).collect();
        let mut built = build();
        for other in others {
            built.extend(other.join().expect("building a table does not panic"));
        }
        built
    });
    built.sort_unstable_by_key(|(number, _)| *number);
    built.into_iter().map(|(_, table)| table).collect()
}

/// From this many slots on, tables are built on all cores that this thread may use: some ten milliseconds of work.
const PARALLEL_BUILD_MIN_SLOTS: u64 = 1 << 21;

/// The most memory of the full tables of one Service, in bytes. The largest Services need less: four sets (cluster and local,
/// of both families) of 2.6 MB.
const SERVICE_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn endpoint(host: u8, port: u16) -> EndpointSpec {
        EndpointSpec { addr: Ipv4Addr::new(10, 0, 0, host).into(), port: L4Port::new(port), weight: 1 }
    }

    fn names(endpoints: &[EndpointSpec]) -> Vec<String> {
        Members::of(endpoints).names.iter().map(MemberName::text).collect()
    }

    #[test]
    fn an_endpoint_is_named_by_its_address_and_by_its_port_only_where_the_address_repeats() {
        let endpoints = [endpoint(1, 80), endpoint(2, 80), endpoint(2, 81), endpoint(2, 82), endpoint(3, 81)];
        assert_eq!(names(&endpoints), ["10.0.0.1", "10.0.0.2", "10.0.0.2:81", "10.0.0.2:82", "10.0.0.3"]);
    }

    #[test]
    fn equal_members_have_one_table_and_others_have_their_own() {
        let mut tables = LookupTables::default();
        let mut number = |endpoints: &[EndpointSpec]| {
            tables.number_for(Members::of(endpoints), &mut TableSizes::default())
        };
        let web = number(&[endpoint(1, 80), endpoint(2, 80)]);
        assert_eq!(number(&[endpoint(1, 443), endpoint(2, 8443)]), web, "only ports differ");
        let one = number(&[endpoint(1, 80)]);
        let heavy = number(&[EndpointSpec { weight: 2, ..endpoint(1, 80) }, endpoint(2, 80)]);
        assert!(one != web && heavy != web && heavy != one);
        assert_eq!(tables.built().len(), 3);
    }

    #[test]
    fn many_threads_build_what_one_builds() {
        let lookups = || {
            let mut tables = LookupTables::default();
            for host in 1..40 {
                let endpoints = [endpoint(host, 80), endpoint(host + 1, 80), endpoint(host + 2, 80)];
                tables.number_for(Members::of(&endpoints), &mut TableSizes::default());
            }
            tables.all
        };
        let (one, many) = (build_on(1, lookups()), build_on(4, lookups()));
        assert_eq!(one.len(), 39);
        assert_eq!(one, many);
    }
}
