//! Which addresses a webhook may reach: the public Internet, and nothing of ours.
//!
//! Otherwise whoever may make a webhook could let the server talk to what only the server can
//! reach: its own API, a cloud's metadata service, the management network ("server-side request
//! forgery"). The connection is made to an address that was checked here, so that a name that
//! changes its answer in between changes nothing.
//!
//! The lists are the IANA special-purpose registries (RFC 6890), as of 2024.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What may be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Policy {
    /// Public addresses, over TLS only.
    Public,
    /// Everything, TLS or not: tests and labs.
    Anything,
}

impl Policy {
    /// Whether this address may be reached; else what it is.
    pub(crate) fn check(self, address: IpAddr) -> Result<(), &'static str> {
        match self {
            Self::Anything => Ok(()),
            Self::Public => match address {
                IpAddr::V4(v4) => special_v4(v4),
                IpAddr::V6(v6) => special_v6(v6),
            }
            .map_or(Ok(()), Err),
        }
    }

    /// Whether connections need no TLS.
    pub(crate) fn permits_plain(self) -> bool {
        self == Self::Anything
    }
}

/// Networks that are not the public Internet: prefix, bits, what it is.
const V4: [([u8; 4], u32, &str); 17] = [
    ([0, 0, 0, 0], 8, "this host"),
    ([10, 0, 0, 0], 8, "a private address"),
    ([100, 64, 0, 0], 10, "a carrier's private address"),
    ([127, 0, 0, 0], 8, "a loopback address"),
    ([169, 254, 0, 0], 16, "a link-local address"),
    ([172, 16, 0, 0], 12, "a private address"),
    ([192, 0, 0, 0], 24, "an address of protocols"),
    ([192, 0, 2, 0], 24, "an address of examples"),
    ([192, 31, 196, 0], 24, "an address of protocols"),
    ([192, 52, 193, 0], 24, "an address of protocols"),
    ([192, 88, 99, 0], 24, "a relay's address"),
    ([192, 168, 0, 0], 16, "a private address"),
    ([192, 175, 48, 0], 24, "an address of protocols"),
    ([198, 18, 0, 0], 15, "an address of benchmarks"),
    ([198, 51, 100, 0], 24, "an address of examples"),
    ([203, 0, 113, 0], 24, "an address of examples"),
    ([224, 0, 0, 0], 3, "a multicast or reserved address"),
];

/// The same for version 6; only 2000::/3 is public at all.
const V6: [([u16; 8], u32, &str); 6] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "an address of protocols"),
    (
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0],
        32,
        "an address of examples",
    ),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "a 6to4 address"),
    (
        [0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0],
        48,
        "an address of protocols",
    ),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "an address of examples"),
    ([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, "a reserved address"),
];

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let bits = address.to_bits();
    V4.iter()
        .find(|(prefix, length, _)| {
            (bits ^ Ipv4Addr::from(*prefix).to_bits()) >> (32 - length) == 0
        })
        .map(|(_, _, what)| *what)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    // Version 4 in the clothes of version 6 is what it was: ::ffff:a.b.c.d, and what a NAT64
    // gateway makes of 64:ff9b::a.b.c.d.
    if let Some(v4) = address.to_ipv4_mapped() {
        return special_v4(v4);
    }
    let segments = address.segments();
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., high, low] = segments;
        return special_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if segments[0] & 0xfe00 == 0xfc00 {
        return Some("a private address");
    }
    if segments[0] & 0xffc0 == 0xfe80 {
        return Some("a link-local address");
    }
    if segments[0] & 0xe000 != 0x2000 {
        return Some("not a public address");
    }
    let bits = address.to_bits();
    V6.iter()
        .find(|(prefix, length, _)| {
            (bits ^ Ipv6Addr::from(*prefix).to_bits()) >> (128 - length) == 0
        })
        .map(|(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_refused_in_every_spelling() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert!(Policy::Public.check(address).is_err(), "{text}");
            assert_eq!(Policy::Anything.check(address), Ok(()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_permitted() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2a00:1450::1",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Policy::Public.check(address), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_an_address_is_is_said() {
        let of = |text: &str| Policy::Public.check(text.parse().unwrap()).unwrap_err();
        assert_eq!(of("169.254.169.254"), "a link-local address");
        assert_eq!(of("127.0.0.1"), "a loopback address");
        assert_eq!(of("::1"), "a loopback address");
        assert_eq!(of("10.0.0.1"), "a private address");
    }
}
