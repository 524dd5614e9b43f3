//! Socket addresses (`sockaddr_in`, `sockaddr_in6`) and control messages (`cmsghdr`), as bytes.
//!
//! Everything here works on byte slices in the kernel's layout, with no pointer and no `unsafe`:
//! what the kernel wrote is parsed as carefully as what a peer wrote.
//!
//! ```text
//!   cmsghdr:  len: usize │ level: i32 │ type: i32 │ data … │ padding to usize
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use quinn_proto::EcnCodepoint;

/// Bytes for a socket address of either family (`sockaddr_in6` is the longer one).
pub(super) const NAME_BYTES: usize = 28;
/// Bytes for the control messages of one datagram, in (packet info, traffic class) or out (those
/// and the segment size): 40 + 24 + 24, rounded up.
pub(super) const CONTROL_BYTES: usize = 96;

const WORD: usize = size_of::<usize>();
const CMSG_HEADER: usize = WORD + 8;

/// What the control messages of a received datagram say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Arrival {
    pub local_ip: Option<IpAddr>,
    pub ecn: Option<EcnCodepoint>,
}

/// What the control messages of a datagram to send shall say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Departure {
    pub source: Option<IpAddr>,
    pub ecn: Option<EcnCodepoint>,
    /// Split the payload into datagrams of this many bytes.
    pub segment: Option<u16>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Writes `address` and answers how many bytes it takes.
pub(super) fn encode_name(address: SocketAddr, out: &mut [u8; NAME_BYTES]) -> u32 {
    out.fill(0);
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&family(libc::AF_INET));
            out[4..8].copy_from_slice(&v4.ip().octets());
            16
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&family(libc::AF_INET6));
            out[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            28
        }
    }
}

fn family(value: i32) -> [u8; 2] {
    u16::try_from(value).unwrap_or_default().to_ne_bytes()
}

/// Reads a socket address; `None` for one of another family or cut short.
pub(super) fn decode_name(name: &[u8]) -> Option<SocketAddr> {
    let kind = i32::from(u16::from_ne_bytes(array(name, 0)?));
    let port = u16::from_be_bytes(array(name, 2)?);
    if kind == libc::AF_INET {
        let ip = Ipv4Addr::from(array::<4>(name, 4)?);
        Some(SocketAddrV4::new(ip, port).into())
    } else if kind == libc::AF_INET6 {
        let flow = u32::from_ne_bytes(array(name, 4)?);
        let ip = Ipv6Addr::from(array::<16>(name, 8)?);
        let scope = u32::from_ne_bytes(array(name, 24)?);
        Some(SocketAddrV6::new(ip, port, flow, scope).into())
    } else {
        None
    }
}

/// Reads the control messages of a received datagram. Unknown ones are skipped; reading stops at
/// one that does not fit.
pub(super) fn decode_control(mut control: &[u8]) -> Arrival {
    let mut arrival = Arrival::default();
    while let Some((level, kind, data, rest)) = next_control(control) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                arrival.ecn = data.first().and_then(|tos| EcnCodepoint::from_bits(*tos));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = array(data, 0).map(i32::from_ne_bytes).unwrap_or_default();
                let bits = u8::try_from(class & 0b11).unwrap_or_default();
                arrival.ecn = EcnCodepoint::from_bits(bits);
            }
            // in_pktinfo: interface, local address, destination address of the packet
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                arrival.local_ip = array::<4>(data, 8).map(|ip| Ipv4Addr::from(ip).into());
            }
            // in6_pktinfo: address, interface
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                arrival.local_ip = array::<16>(data, 0).map(|ip| Ipv6Addr::from(ip).into());
            }
            _ => {}
        }
        control = rest;
    }
    arrival
}

/// The first control message: level, type, data, and what follows it.
fn next_control(control: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(array(control, 0)?);
    let level = i32::from_ne_bytes(array(control, WORD)?);
    let kind = i32::from_ne_bytes(array(control, WORD + 4)?);
    let data = control.get(CMSG_HEADER..len)?;
    let rest = control
        .get(len.next_multiple_of(WORD)..)
        .unwrap_or_default();
    Some((level, kind, data, rest))
}

/// Writes the control messages for a datagram to `to` and answers how many bytes they take.
pub(super) fn encode_control(
    to: SocketAddr,
    departure: Departure,
    out: &mut [u8; CONTROL_BYTES],
) -> usize {
    out.fill(0);
    let mut used = 0;
    // A v4 packet through a dual-stack socket takes the v4 option for its mark.
    let v4 = match to {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().is_some(),
    };
    if let Some(ecn) = departure.ecn {
        let (level, kind) = if v4 {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        put_control(
            out,
            &mut used,
            level,
            kind,
            &i32::from(ecn as u8).to_ne_bytes(),
        );
    }
    match departure.source {
        Some(IpAddr::V4(ip)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            put_control(out, &mut used, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(ip)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            put_control(
                out,
                &mut used,
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                &info,
            );
        }
        None => {}
    }
    if let Some(segment) = departure.segment {
        put_control(
            out,
            &mut used,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            &segment.to_ne_bytes(),
        );
    }
    used
}

fn put_control(
    out: &mut [u8; CONTROL_BYTES],
    used: &mut usize,
    level: i32,
    kind: i32,
    data: &[u8],
) {
    let len = CMSG_HEADER + data.len();
    let message = &mut out[*used..*used + len.next_multiple_of(WORD)];
    message[..WORD].copy_from_slice(&len.to_ne_bytes());
    message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
    message[WORD + 4..CMSG_HEADER].copy_from_slice(&kind.to_ne_bytes());
    message[CMSG_HEADER..len].copy_from_slice(data);
    *used += message.len();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            any::<(u32, u16)>()
                .prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from(ip), port).into()),
            any::<(u128, u16, u32, u32)>().prop_map(|(ip, port, flow, scope)| {
                SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into()
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_address_survives_its_bytes(address in addresses()) {
            let mut name = [0xff; NAME_BYTES];
            let used = encode_name(address, &mut name) as usize;
            prop_assert_eq!(decode_name(&name[..used]), Some(address));
        }

        #[test]
        fn damaged_bytes_are_no_address_and_no_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let _ = decode_name(&bytes);
            let _ = decode_control(&bytes);
        }

        #[test]
        fn packet_info_written_for_a_source_reads_back_by_its_layout(ip in any::<u128>()) {
            let ip = Ipv6Addr::from(ip);
            let to = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 0).into();
            let departure = Departure {
                source: Some(ip.into()),
                ecn: Some(EcnCodepoint::Ect0),
                segment: Some(1200),
            };
            let mut control = [0; CONTROL_BYTES];
            let used = encode_control(to, departure, &mut control);
            let arrival = decode_control(&control[..used]);
            prop_assert_eq!(arrival.local_ip, Some(ip.into()));
            prop_assert_eq!(arrival.ecn, Some(EcnCodepoint::Ect0));
        }
    }

    #[test]
    fn the_longest_set_of_control_messages_fits() {
        let to = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 0).into();
        let departure = Departure {
            source: Some(Ipv6Addr::LOCALHOST.into()),
            ecn: Some(EcnCodepoint::Ce),
            segment: Some(u16::MAX),
        };
        assert!(encode_control(to, departure, &mut [0; CONTROL_BYTES]) <= CONTROL_BYTES);
    }
}
