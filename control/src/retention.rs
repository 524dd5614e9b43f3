//! Forgets what is old: events over the limit, expired idempotency keys, processes that ended long
//! ago. In small steps between other people's writes.

use std::time::Duration;

use crate::clock;
use crate::store::Store;
use crate::store::log::Retention;

/// How often there is a look.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two steps, while there is more to do.
const BREATHE: Duration = Duration::from_millis(50);

/// Trims until the store is closed. A step that fails is tried again at the next look.
pub(crate) async fn keep_trimmed(store: Store, retention: Retention) {
    loop {
        let wait = match store.trim(retention, clock::now()).await {
            Ok(true) => BREATHE,
            Ok(false) => LOOK_EVERY,
            Err(crate::store::StoreError::Stopped) => return,
            Err(error) => {
                tracing::warn!(%error, "old records were not trimmed");
                LOOK_EVERY
            }
        };
        tokio::time::sleep(wait).await;
    }
}
