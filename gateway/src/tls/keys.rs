//! Keys of a session that sleep small.
//!
//! A key that a cipher can use is expanded: about 600 bytes, and a session has six of them (two of
//! the next phase). Here a key stays as TLS derived it, 16 or 32 bytes, and is expanded when a packet
//! needs it. A thread keeps what it expanded last, so that a busy session does not pay for every
//! packet. Expanding and all cryptography is aws-lc's.
//!
//! ```text
//!   TLS ──▶ SmallPacketKey, SmallHeaderKey: raw, zeroized when dropped
//!                    │ a packet
//!                    ▼
//!           Expanded: SLOTS keys a thread, found by the key's number
//! ```
//!
//! An expanded key leaves its thread's slot with the session that it belongs to, and aws-lc wipes
//! its memory.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;

use aws_lc_rs::aead::quic::{self as header, HeaderProtectionKey};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use aws_lc_rs::error::Unspecified;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::cipher::{AeadKey, Iv, Nonce};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::quic::{Algorithm, HeaderProtectionKey as ProtectHeader, PacketKey, Tag};
use rustls::{CipherSuite, Error, SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroizing;

/// Expanded keys of each kind that a thread keeps, about 300 KiB: enough for the sessions that are
/// at work at the same time.
const SLOTS: usize = 256;

/// rustls' provider with keys of our own for QUIC. The order of groups is named: a feature of rustls that another
/// crate may turn on puts the large post-quantum one first, which costs handshakes and bytes.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: SUITES.iter().map(SupportedCipherSuite::Tls13).collect(),
        kx_groups: vec![
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
            kx_group::X25519MLKEM768,
        ],
        ..default_provider()
    }
}

static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let stock = default_provider().cipher_suites;
    let find = |cipher: &'static Cipher| {
        let found = stock.iter().find(|suite| suite.suite() == cipher.suite());
        let suite = found?.tls13()?;
        Some(Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: suite.common.suite,
                hash_provider: suite.common.hash_provider,
                confidentiality_limit: suite.common.confidentiality_limit,
            },
            hkdf_provider: suite.hkdf_provider,
            aead_alg: suite.aead_alg,
            quic: Some(cipher),
        })
    };
    Cipher::ALL.iter().filter_map(find).collect()
});

/// The ciphers of TLS 1.3.
#[derive(Clone, Copy)]
enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    /// In our order of preference: certificates and key exchange have the strength of 128 bits, and
    /// more in the cipher would cost time at every step of a handshake and protect nothing.
    const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    fn suite(self) -> CipherSuite {
        match self {
            Self::Aes128Gcm => CipherSuite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256Gcm => CipherSuite::TLS13_AES_256_GCM_SHA384,
            Self::ChaCha20Poly1305 => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        }
    }

    fn packet(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn header(self) -> &'static header::Algorithm {
        match self {
            Self::Aes128Gcm => &header::AES_128,
            Self::Aes256Gcm => &header::AES_256,
            Self::ChaCha20Poly1305 => &header::CHACHA20,
        }
    }
}

impl Algorithm for Cipher {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        let cipher = *self;
        match cipher {
            Self::Aes128Gcm => Box::new(SmallPacketKey::<16> {
                raw: Raw::new(&key),
                iv,
                cipher,
            }),
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => Box::new(SmallPacketKey::<32> {
                raw: Raw::new(&key),
                iv,
                cipher,
            }),
        }
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn ProtectHeader> {
        let cipher = *self;
        match cipher {
            Self::Aes128Gcm => Box::new(SmallHeaderKey::<16> {
                raw: Raw::new(&key),
                cipher,
            }),
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => Box::new(SmallHeaderKey::<32> {
                raw: Raw::new(&key),
                cipher,
            }),
        }
    }

    fn aead_key_len(&self) -> usize {
        self.packet().key_len()
    }
}

/// A key as TLS derived it, and its number: no other key of this process ever has the same.
struct Raw<const N: usize> {
    number: u64,
    bytes: Zeroizing<[u8; N]>,
}

impl<const N: usize> Raw<N> {
    fn new(key: &AeadKey) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut bytes = Zeroizing::new([0; N]);
        // Both have `aead_key_len` bytes.
        bytes
            .iter_mut()
            .zip(key.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            bytes,
        }
    }
}

impl<const N: usize> Drop for Raw<N> {
    fn drop(&mut self) {
        forget(&PACKET_KEYS, self.number);
        forget(&HEADER_KEYS, self.number);
    }
}

thread_local! {
    static PACKET_KEYS: RefCell<Expanded<LessSafeKey>> = const { RefCell::new(Expanded::new()) };
    static HEADER_KEYS: RefCell<Expanded<HeaderProtectionKey>> = const { RefCell::new(Expanded::new()) };
}

/// The expanded keys of a thread: each in the slot of its number, until another one needs it.
struct Expanded<T> {
    slots: Vec<Option<(u64, T)>>,
}

impl<T> Expanded<T> {
    const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    fn get(
        &mut self,
        number: u64,
        expand: impl FnOnce() -> Result<T, Unspecified>,
    ) -> Result<&T, Unspecified> {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        let slot = self.slots.get_mut(slot_of(number)).ok_or(Unspecified)?;
        if slot.as_ref().is_some_and(|(of, _)| *of != number) {
            *slot = None;
        }
        if slot.is_none() {
            *slot = Some((number, expand()?));
        }
        slot.as_ref().map(|(_, key)| key).ok_or(Unspecified)
    }

    fn forget(&mut self, number: u64) {
        if let Some(slot) = self.slots.get_mut(slot_of(number)) {
            slot.take_if(|(of, _)| *of == number);
        }
    }
}

fn slot_of(number: u64) -> usize {
    usize::try_from(number % SLOTS as u64).unwrap_or(0)
}

/// Nothing to do where the thread is ending: its slots end with it.
fn forget<T>(keys: &'static LocalKey<RefCell<Expanded<T>>>, number: u64) {
    keys.try_with(|keys| keys.borrow_mut().forget(number)).ok();
}

struct SmallPacketKey<const N: usize> {
    raw: Raw<N>,
    iv: Iv,
    cipher: Cipher,
}

impl<const N: usize> SmallPacketKey<N> {
    fn with<T>(
        &self,
        packet_number: u64,
        call: impl FnOnce(&LessSafeKey, aead::Nonce) -> Result<T, Unspecified>,
    ) -> Result<T, Unspecified> {
        let nonce = aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, packet_number).0);
        PACKET_KEYS.with_borrow_mut(|keys| {
            let key = keys.get(self.raw.number, || {
                UnboundKey::new(self.cipher.packet(), &*self.raw.bytes).map(LessSafeKey::new)
            })?;
            call(key, nonce)
        })
    }
}

impl<const N: usize> PacketKey for SmallPacketKey<N> {
    fn encrypt_in_place(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> Result<Tag, Error> {
        self.with(packet_number, |key, nonce| {
            key.seal_in_place_separate_tag(nonce, Aad::from(header), payload)
        })
        .map(|tag| Tag::from(tag.as_ref()))
        .map_err(|_| Error::EncryptError)
    }

    fn decrypt_in_place<'a>(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        self.with(packet_number, |key, nonce| {
            let plain = key.open_in_place(nonce, Aad::from(header), payload)?;
            Ok(plain.len())
        })
        .and_then(move |length| payload.get(..length).ok_or(Unspecified))
        .map_err(|_| Error::DecryptError)
    }

    fn tag_len(&self) -> usize {
        self.cipher.packet().tag_len()
    }

    /// RFC 9001 §6.6 and appendix B.
    fn confidentiality_limit(&self) -> u64 {
        match self.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => 1 << 23,
            Cipher::ChaCha20Poly1305 => u64::MAX,
        }
    }

    /// RFC 9001 §6.6 and appendix B.
    fn integrity_limit(&self) -> u64 {
        match self.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => 1 << 52,
            Cipher::ChaCha20Poly1305 => 1 << 36,
        }
    }
}

struct SmallHeaderKey<const N: usize> {
    raw: Raw<N>,
    cipher: Cipher,
}

impl<const N: usize> SmallHeaderKey<N> {
    /// Header protection, RFC 9001 §5.4.1. `masked`: it is being taken off.
    fn apply(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
        masked: bool,
    ) -> Result<(), Error> {
        let mask = HEADER_KEYS.with_borrow_mut(|keys| {
            keys.get(self.raw.number, || {
                HeaderProtectionKey::new(self.cipher.header(), &*self.raw.bytes)
            })?
            .new_mask(sample)
        });
        let [first_mask, rest @ ..] =
            mask.map_err(|_| Error::General("the sample has the wrong length".into()))?;
        if packet_number.len() > rest.len() {
            return Err(Error::General("the packet number is too long".into()));
        }
        let long_header = *first & 0x80 != 0;
        let first_mask = first_mask & if long_header { 0x0f } else { 0x1f };
        let plain = if masked { *first ^ first_mask } else { *first };
        let length = usize::from(plain & 0x03) + 1;
        *first ^= first_mask;
        packet_number
            .iter_mut()
            .zip(rest)
            .take(length)
            .for_each(|(byte, mask)| *byte ^= mask);
        Ok(())
    }
}

impl<const N: usize> ProtectHeader for SmallHeaderKey<N> {
    fn encrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, false)
    }

    fn decrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, true)
    }

    fn sample_len(&self) -> usize {
        self.cipher.header().sample_len()
    }
}

#[cfg(test)]
mod tests {
    use rustls::Side;
    use rustls::quic::{Keys, Version};

    use super::*;

    /// Keys of both sides for one number, with stock suites and with ours.
    fn keys(suite: &SupportedCipherSuite, number: usize, side: Side) -> Keys {
        let suite = suite.tls13().unwrap().quic_suite().unwrap();
        suite.keys(&number.to_be_bytes(), side, Version::V1)
    }

    fn pairs() -> Vec<(SupportedCipherSuite, SupportedCipherSuite)> {
        let stock = default_provider().cipher_suites;
        let same = |ours: &SupportedCipherSuite| {
            *stock
                .iter()
                .find(|suite| suite.suite() == ours.suite())
                .unwrap()
        };
        let ours = provider().cipher_suites;
        assert_eq!(ours.len(), 3);
        ours.into_iter().map(|ours| (same(&ours), ours)).collect()
    }

    fn sealed(keys: &Keys, packet_number: u64) -> (Vec<u8>, [u8; 5]) {
        let mut payload = b"what an agent said".to_vec();
        let tag = keys
            .local
            .packet
            .encrypt_in_place(packet_number, b"header", &mut payload)
            .unwrap();
        payload.extend_from_slice(tag.as_ref());
        let mut header = [0x41, 0, 0, 1, 2];
        let (first, rest) = header.split_first_mut().unwrap();
        keys.local
            .header
            .encrypt_in_place(&payload[..16], first, rest)
            .unwrap();
        (payload, header)
    }

    fn open(keys: &Keys, packet_number: u64, payload: &mut [u8], header: &mut [u8; 5]) -> Vec<u8> {
        let (first, rest) = header.split_first_mut().unwrap();
        keys.remote
            .header
            .decrypt_in_place(&payload[..16], first, rest)
            .unwrap();
        keys.remote
            .packet
            .decrypt_in_place(packet_number, b"header", payload)
            .unwrap()
            .to_vec()
    }

    /// More keys than a thread has slots for, in an order in which they take each other's.
    #[test]
    fn small_keys_do_exactly_what_stock_keys_do() {
        for (stock, ours) in pairs() {
            let clients: Vec<Keys> = (0..SLOTS).map(|n| keys(&stock, n, Side::Client)).collect();
            let small: Vec<Keys> = (0..SLOTS).map(|n| keys(&ours, n, Side::Client)).collect();
            let servers: Vec<Keys> = (0..SLOTS).map(|n| keys(&ours, n, Side::Server)).collect();
            for packet_number in [0, 1, 1 << 40] {
                for ((client, small), server) in clients.iter().zip(&small).zip(&servers) {
                    let (mut payload, mut header) = sealed(client, packet_number);
                    assert_eq!((payload.clone(), header), sealed(small, packet_number));
                    let plain = open(server, packet_number, &mut payload, &mut header);
                    assert_eq!(plain, b"what an agent said");
                    assert_eq!(header, [0x41, 0, 0, 1, 2]);
                }
            }
            let (stock, small) = (&clients[0].local.packet, &small[0].local.packet);
            assert_eq!(stock.tag_len(), small.tag_len());
            assert_eq!(stock.integrity_limit(), small.integrity_limit());
            assert_eq!(stock.confidentiality_limit(), small.confidentiality_limit());
        }
    }

    #[test]
    fn a_forged_packet_is_refused() {
        for (_, ours) in pairs() {
            let (client, server) = (keys(&ours, 1, Side::Client), keys(&ours, 1, Side::Server));
            let (mut payload, _) = sealed(&client, 7);
            payload[3] ^= 1;
            let opened = server
                .remote
                .packet
                .decrypt_in_place(7, b"header", &mut payload);
            assert_eq!(opened, Err(Error::DecryptError));
        }
    }

    #[test]
    fn expanded_keys_go_with_their_session() {
        let held = || {
            let packets = PACKET_KEYS.with_borrow(|keys| keys.slots.iter().flatten().count());
            packets + HEADER_KEYS.with_borrow(|keys| keys.slots.iter().flatten().count())
        };
        let (_, ours) = pairs().remove(0);
        let client = keys(&ours, 1, Side::Client);
        sealed(&client, 1);
        assert_eq!(held(), 2);
        drop(client);
        assert_eq!(held(), 0);
    }

    #[test]
    fn keys_sleep_small() {
        assert!(size_of::<SmallPacketKey<16>>() <= 40);
        assert!(size_of::<SmallHeaderKey<16>>() <= 32);
        assert!(size_of::<SmallPacketKey<32>>() <= 56);
    }
}
