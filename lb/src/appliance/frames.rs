//! Chooses the frame length of the packet memory, and whether zero copy is possible, by how the drivers use a frame.

use flowgate_xsk::{Driver, KERNEL_HEADROOM, ZeroCopy};

/// A device that receives into frames.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) interface: String,
    pub(crate) driver: Driver,
    pub(crate) mtu: u32,
}

/// The choice for all devices of a packet memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) chunk_len: u32,
    pub(crate) zero_copy: ZeroCopy,
    /// Why zero copy is not tried although the configuration permits it.
    pub(crate) why_copy: Option<String>,
}

/// The largest IP packet, in bytes, that frames of this length hold: beside it the 256 bytes that the kernel keeps, and an
/// Ethernet header with a tag.
pub(crate) fn largest_packet(chunk_len: u32) -> u32 {
    chunk_len - KERNEL_HEADROOM - ETHERNET_AND_TAG
}

/// What follows if frames of this length do not hold the largest packets of an interface, and the remedy; `None` if they do.
/// `frame_bytes` is the configured length, 0 if there is none.
pub(crate) fn shortage(interface: &str, mtu: u32, chunk_len: u32, frame_bytes: u32) -> Option<String> {
    let held = largest_packet(chunk_len);
    if mtu <= held {
        return None;
    }
    let longest_len = LENGTHS[LENGTHS.len() - 1];
    let remedy = match (chunk_len < longest_len, mtu <= largest_packet(longest_len), frame_bytes) {
        (true, true, 0) => {
            format!("restart flowgate, which then takes frames of {longest_len}, or lower the MTU")
        }
        (true, true, _) => format!("set rings.frame_bytes to {longest_len} and restart, or lower the MTU"),
        (true, false, _) => format!(
            "lower the MTU to {held}, or to {} with rings.frame_bytes = {longest_len} and a restart",
            largest_packet(longest_len)
        ),
        (false, ..) => format!("lower the MTU to {held}"),
    };
    Some(format!(
        "{interface}: its MTU of {mtu} does not fit into frames of {chunk_len} bytes: it is served, and received packets of \
         more than {held} bytes are dropped (rx_dropped): {remedy}"
    ))
}

/// A frame should hold the 256 bytes that the kernel keeps, an Ethernet header with a tag, and a packet; in zero
/// copy all of it in the part of the frame that the driver uses. `frame_bytes` is the configured length, 0 if there is none.
/// Where no frame is long enough, the interface is served with the longest: see [`shortage`].
///
/// # Errors
/// Zero copy is demanded where it would lose packets: says what to change.
pub(crate) fn choose(
    receivers: &[Receiver],
    zero_copy: ZeroCopy,
    frame_bytes: u32,
) -> anyhow::Result<Frames> {
    let chunk_len = for_copies(receivers, frame_bytes);
    let longest = |receiver: &Receiver, len| receiver.driver.longest_frame(len);
    let never = receivers.iter().any(|receiver| longest(receiver, chunk_len).is_none());
    if zero_copy == ZeroCopy::Off || never {
        return Ok(Frames { chunk_len, zero_copy, why_copy: None });
    }
    let configured = [frame_bytes];
    let lengths = if frame_bytes == 0 { &LENGTHS[..] } else { &configured };
    let is_short = |receiver: &&Receiver, len| {
        longest(receiver, len).is_some_and(|longest| longest < receiver.mtu + ETHERNET_AND_TAG)
    };
    let short_of = |len| receivers.iter().find(|receiver| is_short(receiver, len));
    if let Some(&chunk_len) = lengths.iter().find(|len| short_of(**len).is_none()) {
        return Ok(Frames { chunk_len, zero_copy, why_copy: None });
    }
    let longest_len = lengths[lengths.len() - 1];
    let why = short_of(longest_len).map(|receiver| {
        let Receiver { interface, driver, mtu } = receiver;
        let delivered = longest(receiver, longest_len).unwrap_or_default();
        format!(
            "{interface} (driver {driver}) would deliver at most {delivered} bytes in one frame of {longest_len} in \
             zero copy, but its MTU of {mtu} needs {}",
            mtu + ETHERNET_AND_TAG
        )
    });
    if zero_copy == ZeroCopy::Force {
        let why = why.unwrap_or_default();
        let longer = if longest_len < 4096 { "set rings.frame_bytes to 0 or 4096, or " } else { "" };
        anyhow::bail!("xdp.zero_copy is force: {why}: {longer}lower the MTU");
    }
    Ok(Frames { chunk_len, zero_copy: ZeroCopy::Off, why_copy: why })
}

/// The length that the largest MTU needs in copy mode.
fn for_copies(receivers: &[Receiver], frame_bytes: u32) -> u32 {
    let largest = receivers.iter().map(|receiver| receiver.mtu).max().unwrap_or(1500);
    match frame_bytes {
        0 if largest <= largest_packet(LENGTHS[0]) => LENGTHS[0],
        0 => LENGTHS[1],
        configured => configured,
    }
}

/// The lengths that AF_XDP supports with pages of 4096 bytes.
const LENGTHS: [u32; 2] = [2048, 4096];
pub(crate) const ETHERNET_AND_TAG: u32 = 18;

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver((interface, driver, mtu): (&str, &str, u32)) -> Receiver {
        Receiver { interface: interface.into(), driver: Driver::named(driver), mtu }
    }

    fn chosen(
        receivers: &[(&str, &str, u32)],
        zero_copy: ZeroCopy,
        frame_bytes: u32,
    ) -> Result<(u32, ZeroCopy, Option<String>), String> {
        let receivers: Vec<_> = receivers.iter().copied().map(receiver).collect();
        let frames = choose(&receivers, zero_copy, frame_bytes).map_err(|error| error.to_string())?;
        Ok((frames.chunk_len, frames.zero_copy, frames.why_copy))
    }

    #[test]
    fn frames_are_as_short_as_every_driver_lets_them() {
        use ZeroCopy::{Auto, Force, Off};
        for (receivers, zero_copy, chunk_len) in [
            (&[("up0", "veth", 1500)][..], Auto, 2048),
            (&[("up0", "veth", 3000)], Auto, 4096),
            (&[("up0", "igb", 1500)], Auto, 4096),
            (&[("up0", "igb", 1500)], Force, 4096),
            (&[("up0", "igb", 1006)], Auto, 2048),
            (&[("up0", "igb", 1007)], Auto, 4096),
            (&[("up0", "igb", 1500)], Off, 2048),
            (&[("up0", "ice", 1774)], Auto, 2048),
            (&[("up0", "ice", 1775)], Auto, 4096),
            (&[("up0", "ice", 1500), ("fab0", "mlx5_core", 1500)], Auto, 2048),
            (&[("up0", "virtio_net", 1500), ("fab0", "mlx5_core", 1500)], Auto, 4096),
            (&[("up0", "ice", 1500), ("fab0", "ixgbe", 1500)], Auto, 4096),
            (&[("up0", "somebody's", 1500)], Auto, 4096),
            // One of them has no zero copy, so that the kernel copies for both.
            (&[("up0", "igb", 1500), ("fab0", "veth", 1500)], Auto, 2048),
            (&[], Auto, 2048),
        ] {
            assert_eq!(
                chosen(receivers, zero_copy, 0),
                Ok((chunk_len, zero_copy, None)),
                "{receivers:?} {zero_copy:?}"
            );
        }
    }

    #[test]
    fn where_zero_copy_would_lose_packets_the_kernel_copies_them_and_why_is_said() {
        let why = "fab0 (driver igb) would deliver at most 1024 bytes in one frame of 2048 in zero copy, but its \
                   MTU of 1500 needs 1518";
        let both = [("up0", "mlx5_core", 1500), ("fab0", "igb", 1500)];
        assert_eq!(chosen(&both, ZeroCopy::Auto, 2048), Ok((2048, ZeroCopy::Off, Some(why.into()))));
        assert_eq!(chosen(&both, ZeroCopy::Auto, 4096), Ok((4096, ZeroCopy::Auto, None)));
        let jumbo = [("up0", "ixgbe", 3500)];
        let why = "up0 (driver ixgbe) would deliver at most 3072 bytes in one frame of 4096 in zero copy, but its \
                   MTU of 3500 needs 3518";
        assert_eq!(chosen(&jumbo, ZeroCopy::Auto, 0), Ok((4096, ZeroCopy::Off, Some(why.into()))));
    }

    #[test]
    fn demanded_zero_copy_that_would_lose_packets_is_an_error_that_says_what_to_change() {
        let error = chosen(&[("up0", "igb", 1500)], ZeroCopy::Force, 2048).unwrap_err();
        assert!(
            error.ends_with("needs 1518: set rings.frame_bytes to 0 or 4096, or lower the MTU"),
            "{error}"
        );
        let error = chosen(&[("up0", "igb", 3500)], ZeroCopy::Force, 0).unwrap_err();
        assert!(error.ends_with("needs 3518: lower the MTU"), "{error}");
    }

    #[test]
    fn an_mtu_that_no_frame_holds_is_served_with_the_longest_that_there_is() {
        for zero_copy in [ZeroCopy::Auto, ZeroCopy::Off] {
            assert_eq!(chosen(&[("up0", "veth", 1800)], zero_copy, 2048).unwrap().0, 2048);
            assert_eq!(chosen(&[("up0", "veth", 9000)], zero_copy, 0).unwrap().0, 4096);
            assert_eq!(chosen(&[("up0", "igb", 9000)], zero_copy, 0).unwrap().1, ZeroCopy::Off);
        }
    }

    #[test]
    fn a_shortage_names_the_interface_what_is_lost_and_the_remedy() {
        let shortage = |mtu, chunk_len, frame_bytes| shortage("up0", mtu, chunk_len, frame_bytes);
        assert_eq!(shortage(1774, 2048, 0), None);
        assert_eq!(shortage(3822, 4096, 4096), None);
        let start = "up0: its MTU of 3000 does not fit into frames of 2048 bytes: it is served, and received packets \
                     of more than 1774 bytes are dropped (rx_dropped): ";
        for (mtu, chunk_len, frame_bytes, remedy) in [
            (3000, 2048, 0, "restart flowgate, which then takes frames of 4096, or lower the MTU"),
            (3000, 2048, 2048, "set rings.frame_bytes to 4096 and restart, or lower the MTU"),
            (9000, 2048, 0, "lower the MTU to 1774, or to 3822 with rings.frame_bytes = 4096 and a restart"),
            (9000, 4096, 0, "lower the MTU to 3822"),
        ] {
            let text = shortage(mtu, chunk_len, frame_bytes).unwrap();
            assert!(text.ends_with(remedy), "{text}");
            assert!(mtu != 3000 || text.starts_with(start), "{text}");
        }
    }
}
