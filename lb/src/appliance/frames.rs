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

/// A frame must hold the 256 bytes that the kernel keeps, an Ethernet header with a tag, and a packet; in zero
/// copy all of it in the part of the frame that the driver uses. `frame_bytes` is the configured length, 0 if there is none.
///
/// # Errors
/// The configured length is too short, or zero copy is demanded where it would lose packets: says what to change.
pub(crate) fn choose(
    receivers: &[Receiver],
    zero_copy: ZeroCopy,
    frame_bytes: u32,
) -> anyhow::Result<Frames> {
    let chunk_len = for_copies(receivers, frame_bytes)?;
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
fn for_copies(receivers: &[Receiver], frame_bytes: u32) -> anyhow::Result<u32> {
    let largest = receivers.iter().max_by_key(|receiver| receiver.mtu);
    let (interface, largest) =
        largest.map_or(("no interface", 1500), |receiver| (&*receiver.interface, receiver.mtu));
    let needed = largest + KERNEL_HEADROOM + ETHERNET_AND_TAG;
    let chosen = match frame_bytes {
        0 if needed <= LENGTHS[0] => LENGTHS[0],
        0 => LENGTHS[1],
        configured => configured,
    };
    anyhow::ensure!(
        needed <= chosen,
        "{interface}: its MTU of {largest} does not fit into frames of {chosen} bytes: at most {} does",
        chosen - KERNEL_HEADROOM - ETHERNET_AND_TAG
    );
    Ok(chosen)
}

/// The lengths that AF_XDP supports with pages of 4096 bytes.
const LENGTHS: [u32; 2] = [2048, 4096];
const ETHERNET_AND_TAG: u32 = 18;

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
    fn an_mtu_beyond_the_configured_frames_is_an_error_in_every_mode() {
        let message = "up0: its MTU of 1800 does not fit into frames of 2048 bytes: at most 1774 does";
        for zero_copy in [ZeroCopy::Auto, ZeroCopy::Force, ZeroCopy::Off] {
            for driver in ["veth", "igb"] {
                let error = chosen(&[("up0", driver, 1800)], zero_copy, 2048).unwrap_err();
                assert_eq!(error, message);
            }
        }
    }
}
