//! Reads from the kernel which XDP program a device runs and in which mode: one RTM_GETLINK. Changes nothing.

use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage, ParseableParametrized as _,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkMessageBuffer, LinkXdp};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

/// Bytes: many times what the description of one device takes.
const LONGEST_ANSWER: usize = 1 << 16;

/// A device's XDP programs by mode, as the kernel reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceXdp {
    pub(crate) native: Option<u32>,
    pub(crate) generic: Option<u32>,
    /// Any program, also one offloaded to the NIC.
    pub(crate) any: Option<u32>,
    pub(crate) rx_queues_allocated: u32,
    /// The largest IP packet, in bytes.
    pub(crate) mtu: u32,
}

/// Queries one device of the calling thread's network namespace.
pub(crate) fn device_xdp(ifindex: u32) -> io::Result<DeviceXdp> {
    let route = Socket::new(NETLINK_ROUTE)?;
    route.send(&request(ifindex), 0)?;
    let mut answer = Vec::with_capacity(LONGEST_ANSWER);
    route.recv(&mut answer, 0)?;
    parse(&answer)
}

fn request(ifindex: u32) -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn parse(answer: &[u8]) -> io::Result<DeviceXdp> {
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    let short = |_error| invalid("netlink answer ends early");
    let message = NetlinkBuffer::new_checked(answer).map_err(short)?;
    if message.message_type() == NLMSG_ERROR {
        let errno = ErrorBuffer::new_checked(message.payload()).map_err(short)?.code();
        return Err(io::Error::from_raw_os_error(errno.map_or(0, |errno| errno.get().wrapping_neg())));
    }
    if message.message_type() != libc::RTM_NEWLINK {
        return Err(invalid("netlink answered something else"));
    }
    let link = LinkMessageBuffer::new_checked(message.payload()).map_err(short)?;
    let mut device = DeviceXdp::default();
    // Attribute by attribute and not as one `LinkMessage`: that fails as a whole when any of some sixty attributes has
    // another length than the crate expects, as it may in a kernel that is older or newer than the crate.
    let attributes = link.attributes().map_while(Result::ok);
    for attribute in
        attributes.filter_map(|bytes| LinkAttribute::parse_with_param(&bytes, AddressFamily::Unspec).ok())
    {
        match attribute {
            LinkAttribute::Mtu(mtu) => device.mtu = mtu,
            LinkAttribute::NumRxQueues(count) => device.rx_queues_allocated = count,
            LinkAttribute::Xdp(programs) => {
                for program in programs {
                    match program {
                        LinkXdp::ProgId(id) => device.any = Some(id),
                        LinkXdp::DrvProgId(id) => device.native = Some(id),
                        LinkXdp::SkbProgId(id) => device.generic = Some(id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // With programs in two modes the kernel leaves IFLA_XDP_PROG_ID out (net/core/rtnetlink.c:rtnl_xdp_fill).
    device.any = device.any.or(device.native).or(device.generic);
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type and length, with zeros behind the type.
    fn message(kind: u16, len: u8) -> Vec<u8> {
        let mut message = vec![0; usize::from(len)];
        message[0..4].copy_from_slice(&u32::from(len).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message
    }

    #[test]
    fn an_error_answer_becomes_its_errno() {
        let mut message = message(NLMSG_ERROR, 20);
        message[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(parse(&message).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_truncated_answer_is_an_error_not_a_panic() {
        let mut message = message(libc::RTM_NEWLINK, 60);
        for len in 0..32 {
            assert!(parse(&message[..len]).is_err(), "{len} bytes");
        }
        message[32..34].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(parse(&message).unwrap(), DeviceXdp::default());
    }

    #[test]
    fn the_loopback_device_runs_no_program() {
        let device = device_xdp(1).unwrap();
        assert_eq!((device.any, device.native, device.generic), (None, None, None));
        assert!(device.rx_queues_allocated >= 1);
        assert!(device.mtu >= 68, "every device of the Internet carries that (RFC 791): {device:?}");
    }
}
