//! Mutation: one to seven small changes of an input.

use fastrand::Rng;

/// Boundary values of integer fields.
const EDGES: [u64; 12] = [0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// A mutated copy; pieces are spliced in from `pool` and `dictionary`.
pub(crate) fn mutated(input: &[u8], pool: &[Vec<u8>], dictionary: &[&[u8]], random: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.usize(..4) * random.usize(..3) {
        change(&mut bytes, pool, dictionary, random);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, pool: &[Vec<u8>], dictionary: &[&[u8]], random: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(random.u8(..));
        return;
    }
    let at = random.usize(..bytes.len());
    let len = random.usize(1..=8.min(bytes.len() - at));
    match random.u8(..12) {
        0 | 1 => bytes[at] ^= 1 << random.u8(..8),
        2 => bytes[at] = random.u8(..),
        3 => edge(&mut bytes[at..at + len], random),
        4 => bytes[at] = bytes[at].wrapping_add(random.u8(1..5)).wrapping_sub(random.u8(1..5)),
        5 => drop(bytes.drain(at..at + len)),
        6 => bytes.truncate(at),
        7 => {
            // Twice the same.
            let again = bytes[at..at + len].to_vec();
            bytes.splice(at..at, again);
        }
        8 => {
            // The end of another input.
            let other = &pool[random.usize(..pool.len())];
            let from = random.usize(..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        9 => {
            let other = &pool[random.usize(..pool.len())];
            let from = random.usize(..=other.len());
            let to = random.usize(from..=other.len().min(from + 40));
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        10 if !dictionary.is_empty() => {
            let word = dictionary[random.usize(..dictionary.len())];
            let end = if random.bool() { at } else { (at + word.len()).min(bytes.len()) };
            bytes.splice(at..end, word.iter().copied());
        }
        _ => bytes.insert(at, random.u8(..)),
    }
}

/// A number at an edge, in network order.
fn edge(field: &mut [u8], random: &mut Rng) {
    let number = EDGES[random.usize(..EDGES.len())].to_be_bytes();
    let len = field.len();
    field.copy_from_slice(&number[8 - len..]);
}

/// Longer inputs only take longer.
const LEN_MAX: usize = 16 * 1024;
