//! Judging what the pipeline did with one packet.

use std::net::{IpAddr, SocketAddr};

use flowgate_dataplane::Verdict;
use flowgate_tables::spec::RouteHopSpec;
use flowgate_tables::{FrontendKind, InterfaceId};
use flowgate_wire::Protocol;
use flowgate_wire::reject::IcmpError;

use super::checksums::judge_translation;
use super::flows::{Chosen, Direction, Flow, Side};
use super::packet::{Kind, Segment, Tuple, addresses, read};
use super::pieces::{piece, segment_of};
use super::places::{Neighbour, Way, hops, snat_addresses, way, worker_ports};
use super::services::{Offer, Rule, frontend, is_own_address, is_own_source, may_answer_kept, rule};
use super::tracking::Noted;
use super::{Decided, Difference, Fate, Model};

impl Model {
    /// Judges one decision and learns from it.
    ///
    /// # Errors
    /// What the pipeline did is not among what it may do.
    pub(crate) fn judge(&mut self, decided: &Decided<'_>) -> Result<Fate, Difference> {
        let source = addresses(decided.before).map(|[src, _]| src);
        let fate = match read(decided.before) {
            Kind::Malformed => self.ends(decided, "drop", "malformed"),
            Kind::NotIp => self.ends(decided, "pass", "not_ip"),
            _ if source.is_some_and(is_martian) => self.ends(decided, "drop", "martian_source"),
            _ if source.is_some_and(|src| is_own_address(&self.world, src)) => {
                self.ends(decided, "drop", "own_source")
            }
            Kind::NotL4 => self.passes(decided, "not_l4"),
            Kind::Fragment => match piece(decided.before) {
                Some(piece) => self.piece(decided, &piece),
                None => self.passes(decided, "fragment"),
            },
            Kind::Segment(segment) => self.segment(decided, &segment),
            Kind::Control(control) => self.control(decided, &control),
        }?;
        if !matches!(fate, Fate::Sent(_) | Fate::Answered) && decided.before != decided.after {
            return Err("a frame that is not sent was changed".into());
        }
        Ok(fate)
    }

    pub(super) fn segment(&mut self, decided: &Decided<'_>, segment: &Segment) -> Result<Fate, Difference> {
        if segment.ttl <= 1 {
            return self.reported(decided, IcmpError::TimeExceeded);
        }
        if let Some((at, side)) = self.flows.find(&segment.tuple) {
            if !self.is_superseded(at, segment, decided.now) {
                self.count(decided.worker, "flow_hits");
                return self.known(decided, segment, at, side);
            }
            self.flows.0.swap_remove(at);
            self.count(decided.worker, "flows_replaced");
        }
        self.unknown(decided, segment)
    }

    /// Whether a flow must give way to a new one for this packet.
    fn is_superseded(&self, at: usize, segment: &Segment, now: u64) -> bool {
        let flow = &self.flows.0[at];
        if flow.is_connection() {
            // A direct connection of the client with this backend is seen by its answer only.
            let answers_past_us =
                segment.flags.syn && segment.flags.ack && may_answer_kept(&self.world, &segment.tuple);
            (segment.flags.opens() || answers_past_us) && flow.is_closing()
        } else {
            flow.is_stale(&self.lives) || flow.is_expired(now, &self.timeouts)
        }
    }

    fn known(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        at: usize,
        side: Side,
    ) -> Result<Fate, Difference> {
        let flow = &self.flows.0[at];
        let to = flow.translated(side);
        let before = match side {
            Side::Client => flow.client.hop.clone(),
            Side::Server => flow.server.hop.clone(),
        };
        let (fate, chosen) = self.leaves(decided, segment, &to, before)?;
        if matches!(fate, Fate::Sent(_) | Fate::Reported(IcmpError::TooBig(_))) {
            let noted = self.flows.0[at].note(side, segment, decided.now);
            self.count_noted(decided.worker, noted);
        }
        let flow = &mut self.flows.0[at];
        match side {
            Side::Client => flow.client.hop = chosen,
            Side::Server => flow.server.hop = chosen,
        }
        Ok(fate)
    }

    fn count_noted(&mut self, worker: usize, noted: Noted) {
        match noted {
            Noted::Plainly => {}
            Noted::ResetIgnored => self.count(worker, "resets_ignored"),
            Noted::Ignored => self.count(worker, "segments_ignored"),
            Noted::Refuted => self.count(worker, "resets_refuted"),
        }
    }

    /// The packet is to leave as `to`, by a way there is: the one it took before, while that can be taken
    /// and none has come since.
    fn leaves(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        to: &Tuple,
        before: Option<Chosen>,
    ) -> Result<(Fate, Option<Chosen>), Difference> {
        let dst = to.dst.ip();
        let all = hops(&self.world, dst);
        if all.is_empty() {
            return Ok((self.reported(decided, IcmpError::NoRoute)?, before));
        }
        let may_take = |hop: &RouteHopSpec| match &before {
            Some((old, among)) if all.contains(old) => hop == old || !among.contains(hop),
            _ => true,
        };
        let mut refused = Vec::new();
        for hop in all.iter().filter(|hop| may_take(hop)) {
            let chosen = Some((*hop, all.clone()));
            match (way(&self.world, hop, dst), decided.verdict) {
                (Way::NeighbourKey(neighbour), _) if held_for(decided) == Some(neighbour) => {
                    return Ok((Fate::Waits(neighbour), chosen));
                }
                (Way::Open { mtu, .. }, Verdict::IcmpError(IcmpError::TooBig(told)))
                    if mtu == told && segment.ip_len > mtu =>
                {
                    // It does not say which of several ways it is too big for.
                    let known = if all.len() == 1 { chosen } else { before.clone() };
                    return Ok((self.reported(decided, IcmpError::TooBig(mtu))?, known));
                }
                (Way::Open { egress, ether, mtu }, Verdict::Transmit(by))
                    if egress == by && segment.ip_len <= mtu =>
                {
                    match judge_translation(decided.before, decided.after, segment, to, &ether) {
                        Ok(()) => return Ok((Fate::Sent(egress), chosen)),
                        Err(what) => refused.push(what),
                    }
                }
                (way, _) => refused.push(format!("{way:?}")),
            }
        }
        Err(format!("{:?} is none of the ways: {}", decided.verdict, refused.join("; ")))
    }

    /// A packet that no flow has.
    fn unknown(&mut self, decided: &Decided<'_>, segment: &Segment) -> Result<Fate, Difference> {
        let tuple = &segment.tuple;
        let opens = tuple.protocol == Protocol::Udp || segment.flags.opens();
        if !opens && frontend(&self.world, tuple).is_some() {
            return self.without_connection(decided, segment);
        }
        if !segment.is_intact && frontend(&self.world, tuple).is_some() {
            return self.ends(decided, "drop", "bad_checksum");
        }
        match rule(&self.world, &self.lives, &self.bindings, tuple, decided.now) {
            Rule::Serve(offer) => self.serve(decided, segment, &offer),
            Rule::Reject(reason) => {
                self.unbind(tuple);
                self.ends(decided, "reject", reason)
            }
            Rule::Drop(reason) => {
                self.unbind(tuple);
                self.ends(decided, "drop", reason)
            }
            Rule::NotOurs if self.is_to_snat_port(tuple) => self.without_connection(decided, segment),
            Rule::NotOurs if self.unserved(tuple.dst.ip()).is_some() => self.passes(decided, "not_ours"),
            Rule::NotOurs if may_answer_kept(&self.world, tuple) => {
                let (fate, _) = self.leaves(decided, segment, tuple, None)?;
                if matches!(fate, Fate::Sent(_)) {
                    self.count(decided.worker, "routed");
                }
                Ok(fate)
            }
            Rule::NotOurs => self.passes(decided, "not_ours"),
        }
    }

    /// The kernel's business, unless it is sent to a VIP, which the kernel does not have.
    pub(super) fn passes(&mut self, decided: &Decided<'_>, reason: &'static str) -> Result<Fate, Difference> {
        let dst = addresses(decided.before).map(|[_, dst]| dst).ok_or("passed, but no IP packet")?;
        match self.unserved(dst) {
            Some(unserved) => self.ends(decided, "drop", unserved),
            None => self.ends(decided, "pass", reason),
        }
    }

    /// Why what no Service has is dropped nevertheless, if it is sent to this address.
    fn unserved(&self, dst: IpAddr) -> Option<&'static str> {
        let mut frontends = self.world.services.iter().flat_map(|service| &service.frontends);
        if is_own_address(&self.world, dst) {
            None
        } else if frontends.any(|f| f.kind != FrontendKind::NodePort && f.addr == dst) {
            Some("unserved_port")
        } else {
            let in_range = self.world.service_cidrs.iter().any(|net| net.contains(&dst));
            in_range.then_some("unallocated_cluster_ip")
        }
    }

    /// A segment that belongs to no connection and opens none. RFC 9293 section 3.10.7.1: TCP is told.
    fn without_connection(&mut self, decided: &Decided<'_>, segment: &Segment) -> Result<Fate, Difference> {
        let is_told = segment.tuple.protocol == Protocol::Tcp && !segment.flags.rst;
        if is_told && self.config.reset_unknown {
            self.ends(decided, "reject", "no_connection")
        } else {
            self.ends(decided, "drop", "no_flow")
        }
    }

    fn unbind(&mut self, tuple: &Tuple) {
        let Some((service, frontend)) = frontend(&self.world, tuple) else { return };
        let admits = |addr| {
            frontend.allowed.as_ref().is_none_or(|nets| nets.iter().any(|n| n.contains(addr)))
                && !is_own_source(&self.world, frontend, tuple)
        };
        if service.affinity.is_some() && admits(&tuple.src.ip()) {
            self.bindings.forget(&self.lives, tuple.src.ip(), &(service.name.clone(), service.protocol));
        }
    }

    fn is_to_snat_port(&self, tuple: &Tuple) -> bool {
        let own = (0..).map(InterfaceId).take(self.world.interfaces.len());
        self.world.snat_ports.contains(tuple.dst.port())
            && own.flat_map(|i| snat_addresses(&self.world, i, tuple.dst.ip())).any(|a| a == tuple.dst.ip())
    }

    /// A first packet that has candidates: any of them may get it, by any of its ways, in any legal form.
    fn serve(&mut self, decided: &Decided<'_>, segment: &Segment, offer: &Offer) -> Result<Fate, Difference> {
        let ways: Vec<Chance> = offer.candidates.iter().flat_map(|b| self.chances(*b)).collect();
        let legal = |fits: &dyn Fn(&Chance) -> bool| -> Vec<SocketAddr> {
            ways.iter().filter(|chance| fits(chance)).map(|chance| chance.backend).collect()
        };
        let is_open = |chance: &Chance| matches!(chance.way, Some(Way::Open { .. }));
        let (possible, fate) = match decided.verdict {
            Verdict::Transmit(_) => {
                let (backend, fate) = self.opened(decided, segment, offer, &ways)?;
                (vec![backend], fate)
            }
            Verdict::IcmpError(IcmpError::TooBig(told)) => {
                let is_too_small = |chance: &Chance| matches!(chance.way, Some(Way::Open { mtu, .. }) if mtu == told && segment.ip_len > mtu);
                (legal(&is_too_small), self.reported(decided, IcmpError::TooBig(told))?)
            }
            Verdict::IcmpError(IcmpError::NoRoute) => {
                (legal(&|chance| chance.way.is_none()), self.reported(decided, IcmpError::NoRoute)?)
            }
            Verdict::AwaitNeighbour(_) => {
                let held = held_for(decided);
                (legal(&|chance| chance.way == held.map(Way::NeighbourKey)), Fate::Waits(held.unwrap()))
            }
            Verdict::Drop(reason) => {
                self.count(decided.worker, reason.name());
                let possible = match reason.name() {
                    "no_snat_address" => legal(&|chance| self.has_no_source(decided, segment, offer, chance)),
                    "snat_ports_exhausted" => {
                        legal(&|chance| self.is_exhausted(decided, segment, offer, chance))
                    }
                    "flow_table_full" if self.flows.is_crowded(segment.tuple.src.is_ipv4()) => {
                        legal(&is_open)
                    }
                    _ => vec![],
                };
                (possible, Fate::Ends)
            }
            Verdict::Pass(_)
            | Verdict::Reject(_)
            | Verdict::IcmpError(_)
            | Verdict::AwaitFragment(_)
            | Verdict::Untag
            | Verdict::Reply => (vec![], Fate::Ends),
        };
        if possible.is_empty() {
            return Err(format!("{:?} is not for a new flow to one of {ways:?}", decided.verdict));
        }
        if offer.bound {
            let client = segment.tuple.src.ip();
            self.bindings.learn(&self.lives, client, &offer.port, &possible, decided.now);
        }
        Ok(fate)
    }

    /// All ways to a backend; one that is none when there is no route.
    fn chances(&self, backend: SocketAddr) -> Vec<Chance> {
        let among = hops(&self.world, backend.ip());
        if among.is_empty() {
            return vec![Chance { backend, way: None, hop: None }];
        }
        let chance = |hop: &RouteHopSpec| Chance {
            backend,
            way: Some(way(&self.world, hop, backend.ip())),
            hop: Some((*hop, among.clone())),
        };
        among.iter().map(chance).collect()
    }

    /// Learns the flow that a first packet began.
    fn opened(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        ways: &[Chance],
    ) -> Result<(SocketAddr, Fate), Difference> {
        let sent = segment_of(decided.after).ok_or("sent what is no segment")?;
        let reply = sent.tuple.reversed();
        let fits = |chance: &&Chance| match (chance.way, decided.verdict) {
            (Some(Way::Open { egress, ether, mtu }), Verdict::Transmit(by)) => {
                chance.backend == reply.src
                    && egress == by
                    && segment.ip_len <= mtu
                    && decided.after[..12] == ether
            }
            _ => false,
        };
        let chance = ways.iter().find(fits);
        let chance =
            chance.ok_or_else(|| format!("{:?} to {} is none of {ways:?}", decided.verdict, reply.src))?;
        let Some(Way::Open { egress, ether, .. }) = chance.way else { return Err("no way".into()) };
        self.open(decided, segment, offer, chance, (egress, reply))?;
        judge_translation(decided.before, decided.after, segment, &reply.reversed(), &ether)?;
        Ok((chance.backend, Fate::Sent(egress)))
    }

    fn open(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        chance: &Chance,
        (egress, reply): (InterfaceId, Tuple),
    ) -> Result<(), Difference> {
        let (tuple, backend) = (segment.tuple, chance.backend);
        let source = reply.dst;
        if offer.replaces_source(tuple.src.ip(), backend) {
            let addresses = snat_addresses(&self.world, egress, backend.ip());
            let ports = worker_ports(&self.ports, decided.worker, self.worker_count);
            if !addresses.contains(&source.ip()) || !ports.contains(&source.port()) {
                return Err(format!("{source} is no source of worker {}", decided.worker));
            }
        } else {
            let as_it_was = Tuple { protocol: tuple.protocol, src: backend, dst: tuple.src };
            let another_port =
                source.ip() == tuple.src.ip() && source.port() >= 1024 && !self.flows.is_free(&as_it_was);
            if source != tuple.src && !another_port {
                return Err(format!("the client's source {} became {source}", tuple.src));
            }
        }
        if let Some((holder, _)) = self.flows.find(&reply) {
            // Only when no port is free, and only one that nobody would miss.
            if !self.all_sources(decided, segment, offer, chance, |holder| holder.is_some())
                || !self.flows.0[holder].may_make_room()
            {
                return Err(format!("answers of {reply:?} belong to another flow"));
            }
            self.flows.0.swap_remove(holder);
            self.count(decided.worker, "snat_ports_reclaimed");
        }
        let key = (offer.port.clone(), backend);
        let life = self.lives.of_backend(&key).ok_or("a backend that is not in the tables")?;
        let server = Direction { last: decided.now, ..Direction::default() };
        let client = Direction { hop: chance.hop.clone(), ..server.clone() };
        let (opened, is_stream) = (decided.now, false);
        let mut flow = Flow { original: tuple, reply, backend: key, life, client, server, opened, is_stream };
        flow.note(Side::Client, segment, decided.now);
        self.flows.0.push(flow);
        self.count(decided.worker, "flows_opened");
        Ok(())
    }

    fn has_no_source(
        &self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        chance: &Chance,
    ) -> bool {
        let Some(Way::Open { egress, .. }) = chance.way else { return false };
        offer.replaces_source(segment.tuple.src.ip(), chance.backend)
            && (snat_addresses(&self.world, egress, chance.backend.ip()).is_empty()
                || worker_ports(&self.ports, decided.worker, self.worker_count).is_empty())
    }

    /// Whether every source of this worker stands for another flow to this backend, none of which makes room.
    fn is_exhausted(&self, decided: &Decided<'_>, segment: &Segment, offer: &Offer, chance: &Chance) -> bool {
        let keeps = |holder: Option<&Flow>| holder.is_some_and(|flow| !flow.may_make_room());
        self.all_sources(decided, segment, offer, chance, keeps)
    }

    /// Whether all sources that this worker may give the flow have such a holder.
    fn all_sources(
        &self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        chance: &Chance,
        has: impl Fn(Option<&Flow>) -> bool,
    ) -> bool {
        let Some(Way::Open { egress, .. }) = chance.way else { return false };
        let (protocol, src) = (segment.tuple.protocol, chance.backend);
        let ports = worker_ports(&self.ports, decided.worker, self.worker_count);
        let holder = |dst| self.flows.find(&Tuple { protocol, src, dst }).map(|(at, _)| &self.flows.0[at]);
        let all = |addr: IpAddr| ports.iter().all(|port| has(holder(SocketAddr::new(addr, *port))));
        offer.replaces_source(segment.tuple.src.ip(), chance.backend)
            && snat_addresses(&self.world, egress, src.ip()).into_iter().all(all)
    }

    /// The sender must be told of this problem.
    pub(super) fn reported(&mut self, decided: &Decided<'_>, problem: IcmpError) -> Result<Fate, Difference> {
        if decided.verdict != Verdict::IcmpError(problem) {
            return Err(format!("was to be reported: {problem:?}, got {:?}", decided.verdict));
        }
        let reason = match problem {
            IcmpError::TooBig(_) => "too_big",
            IcmpError::TimeExceeded => "ttl_expired",
            IcmpError::NoRoute => "no_route",
            IcmpError::HostUnreachable | IcmpError::PortUnreachable => {
                return Err("no verdict reports a host or a port as unreachable".into());
            }
        };
        self.count(decided.worker, reason);
        Ok(Fate::Reported(problem))
    }

    /// The verdict must be this one.
    pub(super) fn ends(
        &mut self,
        decided: &Decided<'_>,
        what: &'static str,
        reason: &'static str,
    ) -> Result<Fate, Difference> {
        let got = match decided.verdict {
            Verdict::Drop(reason) => ("drop", reason.name()),
            Verdict::Pass(reason) => ("pass", reason.name()),
            Verdict::Reject(reason) => ("reject", reason.name()),
            Verdict::Transmit(_)
            | Verdict::AwaitNeighbour(_)
            | Verdict::IcmpError(_)
            | Verdict::AwaitFragment(_)
            | Verdict::Untag
            | Verdict::Reply => ("", ""),
        };
        if got != (what, reason) {
            return Err(format!("was to be {what} {reason}, got {:?}", decided.verdict));
        }
        self.count(decided.worker, reason);
        Ok(if what == "reject" { Fate::Refused } else { Fate::Ends })
    }
}

/// Addresses that no packet that is forwarded comes from: RFC 1122 section 3.2.1.3, RFC 4291 section 2.
fn is_martian(src: IpAddr) -> bool {
    match src {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first == 0 || first == 127 || (224..240).contains(&first) || v4.octets() == [255; 4]
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            let is_mapped = v6.octets()[..10] == [0; 10] && v6.octets()[10..12] == [0xff; 2];
            v6.to_bits() <= 1 || first >> 8 == 0xff || first >> 6 == 0xfe80 >> 6 || is_mapped
        }
    }
}

/// One way that a new flow may take.
#[derive(Clone, Debug)]
struct Chance {
    backend: SocketAddr,
    way: Option<Way>,
    hop: Option<Chosen>,
}

pub(super) fn held_for(decided: &Decided<'_>) -> Option<Neighbour> {
    let Verdict::AwaitNeighbour(neighbour) = decided.verdict else { return None };
    Some(Neighbour { egress: neighbour.egress, addr: neighbour.addr })
}
