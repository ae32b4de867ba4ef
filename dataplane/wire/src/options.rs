//! Options of IPv4 headers and of IPv6 hop-by-hop headers: whether a router would forward a packet that has them. Only reads,
//! and rewrites none: an option that a router may fill in (record route, timestamp) is forwarded as it came.

use crate::header::{ipv4_option as v4, ipv6_option as v6};
use crate::parse::Malformed;

/// Checks the options of an IPv4 header as the Linux kernel does on input (`net/ipv4/ip_options.c`, `__ip_options_compile`).
///
/// # Errors
/// [`Malformed::Options`] when an option ends beyond the header, is shorter than its kind, points outside of itself, or is
/// there a second time. [`Malformed::SourceRoute`] when one is a source route (RFC 7126 sections 4.3 and 4.4).
#[cold]
pub(crate) fn check_v4(mut options: &[u8]) -> Result<(), Malformed> {
    let mut seen = [false; 4];
    let mut is_source_route = false;
    while let [kind, rest @ ..] = options {
        match *kind {
            v4::END => break,
            v4::NOP => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let len = usize::from(*rest.first().ok_or(Malformed::Options)?);
        let option = options.get(..len).filter(|option| option.len() >= 2).ok_or(Malformed::Options)?;
        let is_valid = match *kind {
            v4::LOOSE_SOURCE_ROUTE | v4::STRICT_SOURCE_ROUTE => {
                is_source_route = true;
                is_first(&mut seen[0]) && pointer(option).is_some_and(|pointer| pointer >= 4)
            }
            v4::RECORD_ROUTE => is_first(&mut seen[1]) && has_room(option, 4, 4),
            v4::TIMESTAMP => is_first(&mut seen[2]) && is_timestamp(option),
            v4::ROUTER_ALERT => len >= 4,
            v4::CIPSO => is_first(&mut seen[3]),
            _ => true,
        };
        if !is_valid {
            return Err(Malformed::Options);
        }
        options = &options[len..];
    }
    if is_source_route { Err(Malformed::SourceRoute) } else { Ok(()) }
}

/// Checks the options of an IPv6 hop-by-hop header, behind its first two bytes (RFC 8200 section 4.2): a node that does not
/// know one discards the packet if the highest two bits of its type demand it.
///
/// # Errors
/// [`Malformed::Options`] when an option ends beyond the header, or demands that the packet be discarded.
#[cold]
pub(crate) fn check_hop_by_hop(mut options: &[u8]) -> Result<(), Malformed> {
    while let [kind, rest @ ..] = options {
        if *kind == v6::PAD1 {
            options = rest;
            continue;
        }
        let len = usize::from(*rest.first().ok_or(Malformed::Options)?);
        // Frames hold no jumbograms, whose option has these bits as well.
        if kind & v6::ACTION_MASK != 0 || rest.len() < 1 + len {
            return Err(Malformed::Options);
        }
        options = &rest[1 + len..];
    }
    Ok(())
}

fn is_first(seen: &mut bool) -> bool {
    !core::mem::replace(seen, true)
}

/// Where an option is filled in next, counted from 1.
fn pointer(option: &[u8]) -> Option<usize> {
    option.get(2).copied().map(usize::from)
}

/// Whether the option has a pointer of at least `least`, and behind it room for `entry_len` bytes or none at all.
fn has_room(option: &[u8], least: usize, entry_len: usize) -> bool {
    let fits = |pointer: usize| pointer > option.len() || pointer + entry_len - 1 <= option.len();
    pointer(option).is_some_and(|pointer| pointer >= least && fits(pointer))
}

/// RFC 791 section 3.1, internet timestamp: the fourth byte has the number of hosts that found no room, and the format.
fn is_timestamp(option: &[u8]) -> bool {
    let Some(overflow_and_flag) = option.get(3) else { return false };
    let entry_len = match overflow_and_flag & 0x0f {
        v4::TIMESTAMP_AND_ADDRESS | v4::TIMESTAMP_PRESPECIFIED => 8,
        _ => 4,
    };
    let is_full = pointer(option).is_some_and(|pointer| pointer > option.len());
    has_room(option, 5, entry_len) && !(is_full && overflow_and_flag >> 4 == 0x0f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_routes_are_told_from_what_is_broken_and_from_what_is_forwarded() {
        let fine: [&[u8]; 8] = [
            &[],
            &[1, 1, 1, 1],
            &[0, 0, 0, 0],
            // Record route with room, and full.
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[7, 7, 8, 10, 0, 0, 1, 0],
            // Timestamps alone, and router alert.
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[148, 4, 0, 0],
            // Unknown, behind the end of the list nothing counts.
            &[222, 2, 0, 131],
        ];
        for options in fine {
            assert_eq!(check_v4(options), Ok(()), "{options:?}");
        }
        let routed: [&[u8]; 3] = [
            &[131, 7, 4, 10, 0, 0, 1, 0],
            &[137, 7, 4, 10, 0, 0, 1, 0],
            // Used up, and behind others.
            &[1, 131, 7, 8, 10, 0, 0, 1],
        ];
        for options in routed {
            assert_eq!(check_v4(options), Err(Malformed::SourceRoute), "{options:?}");
        }
        let broken: [&[u8]; 12] = [
            &[7],
            &[222, 0, 0, 0],
            &[222, 1, 0, 0],
            &[222, 5, 0, 0],
            &[131, 2, 0, 0],
            &[131, 7, 3, 10, 0, 0, 1, 0],
            &[131, 3, 4, 137, 3, 4, 0, 0],
            &[7, 7, 3, 0, 0, 0, 0, 0],
            &[7, 6, 4, 0, 0, 0, 0, 0],
            &[68, 8, 4, 0, 0, 0, 0, 0],
            &[68, 8, 9, 0xf0, 0, 0, 0, 0],
            &[148, 3, 0, 0],
        ];
        for options in broken {
            assert_eq!(check_v4(options), Err(Malformed::Options), "{options:?}");
        }
    }

    #[test]
    fn a_hop_by_hop_option_is_skipped_unless_its_type_demands_otherwise() {
        for fine in
            [&[1, 4, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0], &[5, 2, 0, 0, 1, 0], &[0x1e, 4, 1, 2, 3, 4]]
        {
            assert_eq!(check_hop_by_hop(fine), Ok(()), "{fine:?}");
        }
        for broken in
            [&[1][..], &[1, 5, 0, 0, 0, 0], &[0x5e, 0], &[0x9e, 0], &[0xde, 0], &[0xc2, 4, 0, 1, 0, 0]]
        {
            assert_eq!(check_hop_by_hop(broken), Err(Malformed::Options), "{broken:?}");
        }
    }
}
