//! What happens in an agent, as others may see it.

use std::fmt;
use std::time::Duration;

use protocol::agent::Welcome;
use protocol::close::{CloseCode, Retry};
use protocol::ids::{AgentId, Epoch, Fence, OperationId};
use protocol::operation::{Outcome, Refusal};
use quinn::ConnectionError;

/// What happens in an agent, for load tests and metrics. Called from the agent's task: be quick.
pub trait Observer: Send + Sync + 'static {
    /// A session is up, so long after its connection was begun.
    fn session_up(&self, _agent: AgentId, _welcome: &Welcome, _took: Duration) {}
    /// A session that was up is gone.
    fn session_down(&self, _agent: AgentId, _end: &SessionEnd) {}
    /// A connection could not be made or was refused before its Welcome.
    fn connect_failed(&self, _agent: AgentId, _reason: &str) {}
    /// A command has come, under this epoch of the agent's group.
    fn commanded(&self, _agent: AgentId, _operation: OperationId, _epoch: Epoch) {}
    /// An operation is durably accepted.
    fn accepted(&self, _agent: AgentId, _operation: OperationId, _fence: Fence) {}
    /// An operation was refused.
    fn refused(&self, _agent: AgentId, _operation: OperationId, _fence: Fence, _why: &Refusal) {}
    /// An operation's outcome is durable.
    fn finished(&self, _agent: AgentId, _operation: OperationId, _fence: Fence, _how: &Outcome) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// How a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// This side closed it.
    ClosedHere(CloseCode),
    /// The gateway closed it; `None` for a code that this build does not know.
    ClosedByGateway(Option<CloseCode>),
    /// Nothing was heard for the idle time.
    TimedOut,
    /// The gateway does not know the connection (it restarted).
    Reset,
    /// A QUIC or TLS error.
    Failed(String),
}

impl SessionEnd {
    pub(super) fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::ClosedByGateway(CloseCode::from_wire(close.error_code.into_inner()))
            }
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            other => Self::Failed(other.to_string()),
        }
    }

    /// What the policy is to make of it.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::ClosedByGateway(Some(code)) | Self::ClosedHere(code) => code.retry(),
            _ => Retry::Soon,
        }
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedHere(code) => write!(f, "closed here: {code}"),
            Self::ClosedByGateway(Some(code)) => write!(f, "closed by the gateway: {code}"),
            Self::ClosedByGateway(None) => f.write_str("closed by the gateway, for a new reason"),
            Self::TimedOut => f.write_str("nothing was heard from the gateway"),
            Self::Reset => f.write_str("the gateway has restarted"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}
