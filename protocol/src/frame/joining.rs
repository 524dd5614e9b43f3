//! Frames about the connection between a process server and an agent server.

use std::time::Duration;

use flatbuffers::{UnionWIPOffset, WIPOffset};

use super::check::{self, Fault};
use super::codec::{self, Builder, Kind, string, uuid};
use super::lists::{read_addresses, write_addresses};
use super::{DecodeError, EncodeError};
use crate::generated::link as fb;
use crate::ids::{GatewayId, ServerId};
use crate::limits::{NAME_BYTES_MAX, SHARDS_MAX, WORD_FRAME_BYTES_MAX};
use crate::link::{GatewayWord, Leave, ServerWord};
use crate::version::VersionRange;

const SERVER: Kind = Kind {
    name: "process server's word",
    identifier: "DRLS",
    bytes_max: WORD_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};
const GATEWAY: Kind = Kind {
    name: "agent server's word",
    identifier: "DRLG",
    bytes_max: WORD_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_server_word(word: &ServerWord, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&SERVER, out, |b| {
        let (body_type, body) = write_server_body(b, word)?;
        let args = fb::ServerWordArgs {
            body_type,
            body: Some(body),
        };
        Ok(fb::ServerWord::create(b, &args))
    })
}

fn write_server_body(
    b: &mut Builder,
    word: &ServerWord,
) -> Result<(fb::ServerWordBody, WIPOffset<UnionWIPOffset>), Fault> {
    use fb::ServerWordBody as Body;
    Ok(match word {
        ServerWord::Hello {
            versions,
            software,
            observes,
        } => {
            let software = check::name("hello.software", software, NAME_BYTES_MAX)?;
            let args = fb::LinkHelloArgs {
                oldest_version: versions.oldest,
                newest_version: versions.newest,
                software: string(b, software),
                observes: *observes,
            };
            let hello = fb::LinkHello::create(b, &args);
            (Body::LinkHello, hello.as_union_value())
        }
        ServerWord::Came => {
            let came = fb::Came::create(b, &fb::CameArgs {});
            (Body::Came, came.as_union_value())
        }
        ServerWord::Draining => {
            let draining = fb::Draining::create(b, &fb::DrainingArgs {});
            (Body::Draining, draining.as_union_value())
        }
        ServerWord::Renewed { ticket, leave } => {
            let args = fb::RenewedArgs {
                ticket: *ticket,
                leave: write_leave(*leave),
            };
            let renewed = fb::Renewed::create(b, &args);
            (Body::Renewed, renewed.as_union_value())
        }
    })
}

/// Reads a frame without its size prefix. Whether the versions are spoken here is not judged, so
/// that the refusal can say what they are: see [`VersionRange::negotiate`].
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_server_word(frame: &[u8]) -> Result<ServerWord, DecodeError> {
    let root = codec::root::<fb::ServerWord<'_>>(&SERVER, frame)?;
    Ok(match root.body_type() {
        fb::ServerWordBody::LinkHello => {
            let hello = root
                .body_as_link_hello()
                .ok_or_else(|| Fault::missing("body"))?;
            let software = hello.software().unwrap_or_default();
            ServerWord::Hello {
                versions: VersionRange {
                    oldest: hello.oldest_version(),
                    newest: hello.newest_version(),
                },
                software: check::name("hello.software", software, NAME_BYTES_MAX)?.to_owned(),
                observes: hello.observes(),
            }
        }
        fb::ServerWordBody::Came => ServerWord::Came,
        fb::ServerWordBody::Draining => ServerWord::Draining,
        fb::ServerWordBody::Renewed => {
            let renewed = root
                .body_as_renewed()
                .ok_or_else(|| Fault::missing("body"))?;
            ServerWord::Renewed {
                ticket: renewed.ticket(),
                leave: read_leave(renewed.leave())?,
            }
        }
        _ => return Err(Fault::unknown("body").into()),
    })
}

fn write_leave(leave: Leave) -> u8 {
    match leave {
        Leave::NotYet => 0,
        Leave::Empty => 1,
        Leave::Alone => 2,
    }
}

fn read_leave(leave: u8) -> Result<Leave, Fault> {
    match leave {
        0 => Ok(Leave::NotYet),
        1 => Ok(Leave::Empty),
        2 => Ok(Leave::Alone),
        _ => Err(Fault::unknown("renewed.leave")),
    }
}

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_gateway_word(word: &GatewayWord, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&GATEWAY, out, |b| {
        let (body_type, body) = write_gateway_body(b, word)?;
        let args = fb::GatewayWordArgs {
            body_type,
            body: Some(body),
        };
        Ok(fb::GatewayWord::create(b, &args))
    })
}

fn write_gateway_body(
    b: &mut Builder,
    word: &GatewayWord,
) -> Result<(fb::GatewayWordBody, WIPOffset<UnionWIPOffset>), Fault> {
    use fb::GatewayWordBody as Body;
    Ok(match word {
        GatewayWord::Welcome {
            version,
            gateway,
            server,
            shards,
            port,
            addresses,
        } => {
            check_shards(*shards)?;
            let args = fb::LinkWelcomeArgs {
                version: *version,
                gateway: Some(&uuid(gateway.to_bytes())),
                server: server.0,
                shards: *shards,
                port: *port,
                addresses: write_addresses(b, addresses)?,
            };
            let welcome = fb::LinkWelcome::create(b, &args);
            (Body::LinkWelcome, welcome.as_union_value())
        }
        GatewayWord::Leads { leads } => {
            let leads = fb::Leads::create(b, &fb::LeadsArgs { leads: *leads });
            (Body::Leads, leads.as_union_value())
        }
        GatewayWord::Renew { ticket, leaves_in } => {
            // Also whoever leaves now says so: 0 is to stay.
            let leaves_in = leaves_in.map(|left| left.as_millis().max(1));
            let args = fb::RenewArgs {
                ticket: *ticket,
                leaves_in_ms: leaves_in.map_or(0, |ms| u32::try_from(ms).unwrap_or(u32::MAX)),
            };
            let renew = fb::Renew::create(b, &args);
            (Body::Renew, renew.as_union_value())
        }
    })
}

/// A gateway without shards, or with more than there can be, is none.
fn check_shards(shards: u16) -> Result<(), Fault> {
    if shards == 0 {
        return Err(Fault::missing("welcome.shards"));
    }
    check::size(
        "welcome.shards",
        usize::from(shards),
        usize::from(SHARDS_MAX),
    )
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_gateway_word(frame: &[u8]) -> Result<GatewayWord, DecodeError> {
    let root = codec::root::<fb::GatewayWord<'_>>(&GATEWAY, frame)?;
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        fb::GatewayWordBody::LinkWelcome => {
            let welcome = root.body_as_link_welcome().ok_or_else(missing)?;
            check_shards(welcome.shards())?;
            GatewayWord::Welcome {
                version: welcome.version(),
                gateway: GatewayId::from_bytes(welcome.gateway().0),
                server: ServerId(welcome.server()),
                shards: welcome.shards(),
                port: welcome.port(),
                addresses: read_addresses(welcome.addresses())?,
            }
        }
        fb::GatewayWordBody::Leads => GatewayWord::Leads {
            leads: root.body_as_leads().ok_or_else(missing)?.leads(),
        },
        fb::GatewayWordBody::Renew => {
            let renew = root.body_as_renew().ok_or_else(missing)?;
            let ms = u64::from(renew.leaves_in_ms());
            GatewayWord::Renew {
                ticket: renew.ticket(),
                leaves_in: (ms > 0).then(|| Duration::from_millis(ms)),
            }
        }
        _ => return Err(Fault::unknown("body").into()),
    })
}
