//! Judging what the pipeline did with one packet.

use std::net::{IpAddr, SocketAddr};

use flowgate_dataplane::Verdict;
use flowgate_tables::InterfaceId;
use flowgate_wire::Protocol;

use super::flows::{BUCKET, Direction, Flow, Side};
use super::packet::{Kind, Segment, Tuple, judge_translation, read};
use super::places::{Neighbour, Way, snat_addresses, way, worker_ports};
use super::services::{Offer, Rule, frontend, may_answer_kept, rule};
use super::{Decided, Difference, Fate, Model};

impl Model {
    /// Judges one decision and learns from it.
    ///
    /// # Errors
    /// What the pipeline did is not among what it may do.
    pub(crate) fn judge(&mut self, decided: &Decided<'_>) -> Result<Fate, Difference> {
        let fate = match read(decided.before) {
            Kind::Malformed => self.ends(decided, "drop", "malformed"),
            Kind::NotIpv4 => self.ends(decided, "pass", "not_ipv4"),
            Kind::NotL4 => self.ends(decided, "pass", "not_l4"),
            Kind::Fragment => self.ends(decided, "pass", "fragment"),
            Kind::Segment(segment) => self.segment(decided, &segment),
        }?;
        if !matches!(fate, Fate::Sent(_)) && decided.before != decided.after {
            return Err("a frame that is not sent was changed".into());
        }
        Ok(fate)
    }

    fn segment(&mut self, decided: &Decided<'_>, segment: &Segment) -> Result<Fate, Difference> {
        if segment.ttl <= 1 {
            return self.ends(decided, "drop", "ttl_expired");
        }
        if let Some((at, side)) = self.flows.find(&segment.tuple) {
            if !self.is_over(at, segment, decided.now) {
                self.count(decided.worker, "flow_hits");
                return self.known(decided, segment, at, side);
            }
            self.flows.0.swap_remove(at);
            self.count(decided.worker, "flows_replaced");
        }
        self.unknown(decided, segment)
    }

    /// Whether a flow must give way to a new one for this packet.
    fn is_over(&self, at: usize, segment: &Segment, now: u64) -> bool {
        let flow = &self.flows.0[at];
        if flow.is_tcp() {
            segment.flags.opens() && flow.is_closing()
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
        let to = self.flows.0[at].translated(side);
        let fate = self.leaves(decided, segment, &to)?;
        let too_big = decided.verdict == Verdict::Drop(flowgate_dataplane::DropReason::TooBig);
        if matches!(fate, Fate::Sent(_)) || too_big {
            self.flows.0[at].note(side, segment, decided.now);
        }
        Ok(fate)
    }

    /// The packet is to leave as `to`, by the way there is.
    fn leaves(&mut self, decided: &Decided<'_>, segment: &Segment, to: &Tuple) -> Result<Fate, Difference> {
        match way(&self.world, to.dst.ip()) {
            Way::None => self.ends(decided, "drop", "no_route"),
            Way::Unresolved(neighbour) => waits(decided, neighbour),
            Way::Open { mtu, .. } if segment.ip_len > mtu => self.ends(decided, "drop", "too_big"),
            Way::Open { egress, ether, .. } => {
                if decided.verdict != Verdict::Transmit(egress) {
                    return Err(format!("was to be sent by {egress:?}, got {:?}", decided.verdict));
                }
                judge_translation(decided.before, decided.after, segment, to, &ether)?;
                Ok(Fate::Sent(egress))
            }
        }
    }

    /// A packet that no flow has.
    fn unknown(&mut self, decided: &Decided<'_>, segment: &Segment) -> Result<Fate, Difference> {
        let tuple = &segment.tuple;
        let opens = tuple.protocol != Protocol::Tcp || segment.flags.opens();
        if !opens && frontend(&self.world, tuple).is_some() {
            return self.ends(decided, "drop", "no_flow");
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
            Rule::NotOurs if self.is_to_snat_port(tuple) => self.ends(decided, "drop", "no_flow"),
            Rule::NotOurs if may_answer_kept(&self.world, tuple) => {
                let fate = self.leaves(decided, segment, tuple)?;
                if matches!(fate, Fate::Sent(_)) {
                    self.count(decided.worker, "routed");
                }
                Ok(fate)
            }
            Rule::NotOurs => self.ends(decided, "pass", "not_ours"),
        }
    }

    fn unbind(&mut self, tuple: &Tuple) {
        let Some((service, frontend)) = frontend(&self.world, tuple) else { return };
        let admits =
            |addr| frontend.allowed.as_ref().is_none_or(|nets| nets.iter().any(|n| n.contains(addr)));
        if service.affinity.is_some() && admits(&tuple.src.ip()) {
            self.bindings.forget(&self.lives, tuple.src.ip(), &(service.name.clone(), service.protocol));
        }
    }

    fn is_to_snat_port(&self, tuple: &Tuple) -> bool {
        let own = (0..).map(InterfaceId).take(self.world.interfaces.len());
        self.world.snat_ports.contains(tuple.dst.port())
            && own.flat_map(|i| snat_addresses(&self.world, i, tuple.dst.ip())).any(|a| a == tuple.dst.ip())
    }

    /// A first packet that has candidates: any of them may get it, in any legal form.
    fn serve(&mut self, decided: &Decided<'_>, segment: &Segment, offer: &Offer) -> Result<Fate, Difference> {
        let ways: Vec<(SocketAddr, Way)> =
            offer.candidates.iter().map(|b| (*b, way(&self.world, b.ip()))).collect();
        let client = segment.tuple.src.ip();
        let legal = |fits: &dyn Fn(&SocketAddr, &Way) -> bool| -> Vec<SocketAddr> {
            ways.iter().filter(|(b, way)| fits(b, way)).map(|(b, _)| *b).collect()
        };
        let (possible, fate) = match decided.verdict {
            Verdict::Transmit(egress) => {
                let (backend, fate) = self.opened(decided, segment, offer, &ways, egress)?;
                (vec![backend], fate)
            }
            Verdict::Hold(_) => {
                let held = held_for(decided);
                (legal(&|_, way| Some(*way) == held.map(Way::Unresolved)), Fate::Waits(held.unwrap()))
            }
            Verdict::Drop(reason) => {
                self.count(decided.worker, reason.name());
                let possible = match reason.name() {
                    "no_route" => legal(&|_, way| *way == Way::None),
                    "no_snat_address" => legal(&|b, way| self.has_no_source(decided, offer, client, *b, way)),
                    "snat_ports_exhausted" => {
                        legal(&|b, way| self.is_exhausted(decided, offer, &segment.tuple, *b, way))
                    }
                    "flow_table_full" if 2 * self.flows.0.len() >= BUCKET => {
                        legal(&|_, way| matches!(way, Way::Open { .. }))
                    }
                    "too_big" => vec![self.opened_too_big(decided, segment, offer, &ways)?],
                    _ => vec![],
                };
                (possible, Fate::Ends)
            }
            Verdict::Pass(_) | Verdict::Reject(_) => (vec![], Fate::Ends),
        };
        if possible.is_empty() {
            return Err(format!("{:?} is not for a new flow to one of {ways:?}", decided.verdict));
        }
        if offer.bound {
            self.bindings.learn(&self.lives, client, &offer.port, &possible, decided.now);
        }
        Ok(fate)
    }

    /// Learns the flow that a sent packet began.
    fn opened(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        ways: &[(SocketAddr, Way)],
        egress: InterfaceId,
    ) -> Result<(SocketAddr, Fate), Difference> {
        let Kind::Segment(sent) = read(decided.after) else { return Err("sent what is no segment".into()) };
        let reply = sent.tuple.reversed();
        let (backend, ether) = ways
            .iter()
            .find_map(|(backend, way)| match way {
                Way::Open { egress: by, ether, mtu } if *by == egress && segment.ip_len <= *mtu => {
                    (*backend == sent.tuple.dst).then_some((*backend, *ether))
                }
                _ => None,
            })
            .ok_or_else(|| format!("sent to {} by {egress:?}, of {ways:?}", sent.tuple.dst))?;
        self.open(decided, segment, offer, backend, egress, reply)?;
        judge_translation(decided.before, decided.after, segment, &sent.tuple, &ether)?;
        Ok((backend, Fate::Sent(egress)))
    }

    /// A first packet that is too big for its way opens the flow all the same; only the table shows it.
    fn opened_too_big(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        ways: &[(SocketAddr, Way)],
    ) -> Result<SocketAddr, Difference> {
        let listed = decided.table.iter().find(|listed| listed.original == segment.tuple);
        let reply = listed.ok_or("too big, but opened nothing")?.reply;
        let egress = ways.iter().find_map(|(backend, way)| match way {
            Way::Open { egress, mtu, .. } if *backend == reply.src && segment.ip_len > *mtu => Some(*egress),
            _ => None,
        });
        let egress = egress.ok_or_else(|| format!("was not too big on any of {ways:?}"))?;
        self.open(decided, segment, offer, reply.src, egress, reply)?;
        Ok(reply.src)
    }

    fn open(
        &mut self,
        decided: &Decided<'_>,
        segment: &Segment,
        offer: &Offer,
        backend: SocketAddr,
        egress: InterfaceId,
        reply: Tuple,
    ) -> Result<(), Difference> {
        let tuple = segment.tuple;
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
        if !self.flows.is_free(&reply) {
            return Err(format!("answers of {reply:?} belong to another flow"));
        }
        let key = (offer.port.clone(), backend);
        let life = self.lives.of_backend(&key).ok_or("a backend that is not in the tables")?;
        let server = Direction { last: decided.now, ..Direction::default() };
        let mut flow = Flow { original: tuple, reply, backend: key, life, client: server, server };
        flow.note(Side::Client, segment, decided.now);
        self.flows.0.push(flow);
        self.count(decided.worker, "flows_opened");
        Ok(())
    }

    fn has_no_source(
        &self,
        decided: &Decided<'_>,
        offer: &Offer,
        client: IpAddr,
        backend: SocketAddr,
        way: &Way,
    ) -> bool {
        let Way::Open { egress, .. } = way else { return false };
        offer.replaces_source(client, backend)
            && (snat_addresses(&self.world, *egress, backend.ip()).is_empty()
                || worker_ports(&self.ports, decided.worker, self.worker_count).is_empty())
    }

    /// Whether every source of this worker stands for another flow to this backend.
    fn is_exhausted(
        &self,
        decided: &Decided<'_>,
        offer: &Offer,
        tuple: &Tuple,
        backend: SocketAddr,
        way: &Way,
    ) -> bool {
        let Way::Open { egress, .. } = way else { return false };
        let ports = worker_ports(&self.ports, decided.worker, self.worker_count);
        let reply = |dst| Tuple { protocol: tuple.protocol, src: backend, dst };
        let all_taken =
            |addr: IpAddr| ports.iter().all(|port| !self.flows.is_free(&reply(SocketAddr::new(addr, *port))));
        offer.replaces_source(tuple.src.ip(), backend)
            && snat_addresses(&self.world, *egress, backend.ip()).into_iter().all(all_taken)
    }

    /// The verdict must be this one.
    fn ends(
        &mut self,
        decided: &Decided<'_>,
        what: &'static str,
        reason: &'static str,
    ) -> Result<Fate, Difference> {
        let got = match decided.verdict {
            Verdict::Drop(reason) => ("drop", reason.name()),
            Verdict::Pass(reason) => ("pass", reason.name()),
            Verdict::Reject(reason) => ("reject", reason.name()),
            Verdict::Transmit(_) | Verdict::Hold(_) => ("", ""),
        };
        if got != (what, reason) {
            return Err(format!("was to be {what} {reason}, got {:?}", decided.verdict));
        }
        self.count(decided.worker, reason);
        Ok(if what == "reject" { Fate::Refused } else { Fate::Ends })
    }
}

fn held_for(decided: &Decided<'_>) -> Option<Neighbour> {
    let Verdict::Hold(neighbour) = decided.verdict else { return None };
    Some(Neighbour { egress: neighbour.egress, addr: neighbour.addr.into() })
}

fn waits(decided: &Decided<'_>, neighbour: Neighbour) -> Result<Fate, Difference> {
    if held_for(decided) != Some(neighbour) {
        return Err(format!("was to wait for {neighbour:?}, got {:?}", decided.verdict));
    }
    Ok(Fate::Waits(neighbour))
}
