//! How long the server's admission takes for a whole fleet: what waits for a fleet goes by it.

use std::time::Duration;

/// What `gateway.handshakes_per_second` is where nothing else was said.
const HANDSHAKES_PER_SECOND: f64 = 500.0;
const KEY: &str = "gateway.handshakes_per_second=";

/// The admission of a server.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Door {
    /// Handshakes that each shard starts a second, in the long run.
    pub handshakes_per_second: f64,
    /// Shards.
    pub shards: usize,
}

impl Door {
    /// Of a server that was started with these arguments; the server's default where they do not
    /// say. A server of somebody else's is taken to have it.
    pub fn of(arguments: &[String], shards: usize) -> Self {
        let said = arguments.iter().rev().find_map(|word| {
            let word = word.strip_prefix("--set=").unwrap_or(word);
            word.strip_prefix(KEY)?.parse::<f64>().ok()
        });
        Self {
            handshakes_per_second: said.unwrap_or(HANDSHAKES_PER_SECOND).max(1.0),
            shards: shards.max(1),
        }
    }

    /// How long so many agents take at the door when they come one right after the other.
    #[expect(clippy::cast_precision_loss, reason = "counts well below 2^53")]
    pub fn admission(&self, agents: usize) -> Duration {
        let rate = self.handshakes_per_second * self.shards as f64;
        Duration::from_secs_f64(agents as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(arguments: &[&str], shards: usize) -> Door {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        Door::of(&arguments, shards)
    }

    #[test]
    fn a_fleet_takes_its_size_by_the_rate_of_all_shards() {
        assert_eq!(door(&[], 2).admission(10_000), Duration::from_secs(10));
        assert_eq!(door(&[], 2).admission(100_000), Duration::from_secs(100));
        assert_eq!(door(&[], 0).shards, 1);
    }

    #[test]
    fn the_last_setting_counts_however_it_is_written() {
        let set = "gateway.handshakes_per_second=250";
        assert_eq!(door(&["--set", set], 1).handshakes_per_second, 250.0);
        let later = "--set=gateway.handshakes_per_second=1000";
        assert_eq!(
            door(&["--set", set, later], 1).handshakes_per_second,
            1000.0
        );
        assert_eq!(
            door(&["--set", "gateway.shards=4"], 1).handshakes_per_second,
            500.0
        );
    }
}
