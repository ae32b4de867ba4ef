//! The fault cases, grouped by what they disturb.

mod abuse;
mod address;
mod attack;
mod control;
mod disturb;
mod drain;
pub(in crate::lab) mod flood;
mod fragments;
pub(in crate::lab) mod leak;
mod link;
mod neighbours;
mod newcomers;
mod objects;
mod pmtu;
mod pressure;
mod restart;
mod workers;

use super::Case;

/// All cases, in their order.
pub(super) fn all() -> impl Iterator<Item = Case> {
    let groups: [&'static [Case]; 16] = [
        &flood::CASES,
        &newcomers::CASES,
        &restart::CASES,
        &workers::CASES,
        &pmtu::CASES,
        &pressure::CASES,
        &drain::CASES,
        &link::CASES,
        &address::CASES,
        &neighbours::CASES,
        &control::CASES,
        &objects::CASES,
        &fragments::CASES,
        &attack::CASES,
        &abuse::CASES,
        &leak::CASES,
    ];
    groups.into_iter().flatten().copied()
}
