//! What process servers and agent servers say of their connection.

use std::time::Duration;

use proptest::prelude::*;
use protocol::ids::{GatewayId, ServerId};
use protocol::limits::SHARDS_MAX;
use protocol::link::{GatewayWord, Leave, ServerWord};
use protocol::version::VersionRange;

use super::{addresses, name};

pub(crate) fn server_word() -> impl Strategy<Value = ServerWord> {
    let versions = (any::<u16>(), any::<u16>());
    let hello = (versions, name(), any::<bool>());
    let hello = hello.prop_map(|((oldest, newest), software, observes)| ServerWord::Hello {
        versions: VersionRange { oldest, newest },
        software,
        observes,
    });
    let leave = prop_oneof![Just(Leave::NotYet), Just(Leave::Empty), Just(Leave::Alone)];
    let renewed = (any::<u64>(), leave);
    let renewed = renewed.prop_map(|(ticket, leave)| ServerWord::Renewed { ticket, leave });
    prop_oneof![
        hello,
        Just(ServerWord::Came),
        Just(ServerWord::Draining),
        renewed
    ]
}

pub(crate) fn gateway_word() -> impl Strategy<Value = GatewayWord> {
    let who = (any::<u16>(), any::<[u8; 16]>(), any::<u32>());
    let place = (1..=SHARDS_MAX, any::<u16>(), addresses());
    let welcome = (who, place).prop_map(|(who, place)| GatewayWord::Welcome {
        version: who.0,
        gateway: GatewayId::from_bytes(who.1),
        server: ServerId(who.2),
        shards: place.0,
        port: place.1,
        addresses: place.2,
    });
    let leads = any::<bool>().prop_map(|leads| GatewayWord::Leads { leads });
    let renew = (any::<u64>(), any::<u32>()).prop_map(|(ticket, ms)| GatewayWord::Renew {
        ticket,
        leaves_in: (ms > 0).then(|| Duration::from_millis(u64::from(ms))),
    });
    prop_oneof![welcome, leads, renew]
}
