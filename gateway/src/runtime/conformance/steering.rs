//! Packets reach the shard that their destination id names.

use super::super::{DatapathKind, ParkKind};
use super::every_combination;
use super::harness::{Play, client};

every_combination! {
    byte_zero_of_the_destination_id_chooses_the_shard,
    runts_reach_shard_zero_and_harm_nobody,
}

fn byte_zero_of_the_destination_id_chooses_the_shard(datapath: DatapathKind, park: ParkKind) {
    for shards in [1, 2, 3] {
        let stage = Play {
            shards,
            ..Play::new(datapath, park)
        }
        .start()
        .unwrap();
        // Several sockets: the sender's port must not matter.
        let clients = [(); 3].map(|()| client(stage.launched.local_addr()));
        for byte in 0..=255u8 {
            let client = &clients[usize::from(byte) % clients.len()];
            let mut short = [0x40; 30];
            short[1] = byte;
            let mut long = [0xc0; 40];
            long[6] = byte;
            for packet in [&short[..], &long[..]] {
                client.send(packet).unwrap();
                let (shard, datagram) = stage.seen();
                assert_eq!(
                    (shard.0, &datagram.payload[..]),
                    (u16::from(byte) % shards, packet)
                );
            }
        }
        stage.end();
    }
}

fn runts_reach_shard_zero_and_harm_nobody(datapath: DatapathKind, park: ParkKind) {
    let stage = Play {
        shards: 2,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap();
    let client = client(stage.launched.local_addr());
    let runts: [&[u8]; 5] = [
        &[],
        &[0x40],
        &[0xc0],
        &[0xc0, 1, 1, 1],
        &[0xc0, 1, 1, 1, 1, 1],
    ];
    for runt in runts {
        client.send(runt).unwrap();
        let (shard, datagram) = stage.seen();
        assert_eq!((shard.0, &datagram.payload[..]), (0, runt));
    }
    client.send(&[0x40, 1]).unwrap();
    assert_eq!(stage.seen().0.0, 1);
    stage.end();
}
