//! The node of one lock: made, watched, removed.

use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;
use zookeeper_client::{Acls, Client, CreateMode, EventType, OneshotWatcher, SessionState};

use super::super::hold::{Held, Hold, Keeper};
use super::{ANSWER_WITHIN, RETRY, ZkError, again};
use crate::clock;

/// A lock that is held is looked at so often within a session's time-out.
const LOOKS: u32 = 3;

/// What one holder knows of its lock's node.
pub(super) struct Node {
    pub(super) client: Client,
    /// Its parent.
    pub(super) folder: String,
    pub(super) path: String,
    /// Only our user may touch it.
    pub(super) private: bool,
    /// Its data: who has made it.
    pub(super) holder: Uuid,
}

impl Node {
    /// Takes the lock if nobody has it, tells, and looks after it until it is lost or given back.
    pub(super) async fn take(self, tell: oneshot::Sender<Result<Option<Held>, String>>) {
        // Where nobody hears it any more, what is told is dropped: the lock is given back.
        match again(|| self.make()).await {
            Ok(true) => {
                let (held, keeper) = Held::new();
                tell.send(Ok(Some(held))).ok();
                self.keep(keeper).await;
            }
            Ok(false) => {
                tell.send(Ok(None)).ok();
            }
            Err(error) => {
                tell.send(Err(error)).ok();
                // It may have been made all the same, and would live as long as the session.
                self.give_back().await;
            }
        }
    }

    /// Makes the node; whether it is ours now.
    async fn make(&self) -> Result<bool, ZkError> {
        let acls = match self.private {
            true => Acls::creator_all(),
            false => Acls::anyone_all(),
        };
        let node = CreateMode::Ephemeral.with_acls(acls);
        let folder = CreateMode::Persistent.with_acls(acls);
        loop {
            let made = self
                .client
                .create(&self.path, self.holder.as_bytes(), &node);
            match made.await {
                Ok(_) => return Ok(true),
                Err(ZkError::NoNode) => self.client.mkdir(&self.folder, &folder).await?,
                Err(ZkError::NodeExists) => break,
                Err(error) => return Err(error),
            }
        }
        // Ours, if an answer was lost.
        match self.client.get_data(&self.path).await {
            Ok((data, _)) => Ok(data == self.holder.as_bytes()),
            Err(ZkError::NoNode) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Watches the lock until it is lost or given back.
    async fn keep(&self, keeper: Keeper) {
        let mut states = self.client.state_watcher();
        let mut watcher: Option<OneshotWatcher> = None;
        let session = self.client.session_timeout();
        // The session was heard then, as far as we know.
        let mut heard = clock::monotonic();
        loop {
            let asked = clock::monotonic();
            // Also a process that stood still doubts, before it asks.
            if asked >= heard + session {
                keeper.tell(Hold::Doubtful);
            }
            let connected = states.peek_state() != SessionState::Disconnected;
            if connected && watcher.is_none() {
                let look = self.client.get_and_watch_data(&self.path);
                match timeout(ANSWER_WITHIN, look).await {
                    Ok(Ok((data, _, again))) if data == self.holder.as_bytes() => {
                        // An answer says what was so after it was asked for.
                        (watcher, heard) = (Some(again), asked);
                        keeper.tell(Hold::Held);
                    }
                    Ok(Ok(_) | Err(ZkError::NoNode | ZkError::SessionExpired)) => break,
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            let now = clock::monotonic();
            let look = match &watcher {
                Some(_) => now + session / LOOKS,
                None if now >= heard + session => break,
                None => {
                    keeper.tell(Hold::Doubtful);
                    now + RETRY
                }
            };
            tokio::select! {
                () = keeper.released() => return self.give_back().await,
                state = states.changed() => {
                    if state.is_terminated() {
                        break;
                    }
                    // What has changed while nothing was heard is seen by a look.
                    watcher = None;
                }
                event = changed(&mut watcher) => {
                    if event == EventType::NodeDeleted {
                        break;
                    }
                    watcher = None;
                }
                () = sleep_until(look.into()) => watcher = None,
            }
        }
        keeper.tell(Hold::Lost);
        self.give_back().await;
    }

    /// Removes the node if it is ours, as long as the session may keep it.
    async fn give_back(&self) {
        while !self.client.state().is_terminated() {
            let removed = async {
                let (data, stat) = self.client.get_data(&self.path).await?;
                match data == self.holder.as_bytes() {
                    true => self.client.delete(&self.path, Some(stat.version)).await,
                    false => Ok(()),
                }
            };
            match timeout(ANSWER_WITHIN, removed).await {
                Ok(Ok(()) | Err(ZkError::NoNode)) => return,
                Ok(Err(_)) | Err(_) => sleep(RETRY).await,
            }
        }
    }
}

/// What has happened to a node; never, while it is not watched.
async fn changed(watcher: &mut Option<OneshotWatcher>) -> EventType {
    match watcher.take() {
        Some(watcher) => watcher.changed().await.event_type,
        None => std::future::pending().await,
    }
}
